//! Where fields of kernel structs lie, from the kernel's own type information (BTF).
//!
//! **Problem.** The eBPF programs read a few kernel structs, whose layout differs from kernel to kernel, and rustc emits no
//! relocations for it.
//!
//! **Approach.** Read `/sys/kernel/btf/vmlinux` once (5 MiB, some ten milliseconds), keep the position of each type, and walk
//! names: `member_offset("sock", "__sk_common.skc_num")`. Anonymous structs and unions are looked through; `name[2]` is an
//! element of an array.
//!
//! **Properties.** Input is not trusted to be whole: every read is checked, every walk bounded; a bad file is an error.

use std::{fs, io, path::Path};

/// Where the kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Modifiers and nested anonymous members that a walk follows before it takes the input for a loop.
const MAX_DEPTH: u32 = 32;

/// Why a question to BTF has no answer.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read; without it no program that looks into kernel structs can be loaded.
    #[error(
        "cannot read the kernel's type information {path} (is the kernel built with CONFIG_DEBUG_INFO_BTF?): {source}"
    )]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not BTF, or are cut off.
    #[error("the kernel's type information is malformed: {0}")]
    Malformed(&'static str),
    /// There is no such type.
    #[error("the kernel has no {kind} named {name}")]
    NoType {
        /// "struct", "enum" or "tracepoint".
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// The type has no such member.
    #[error("the kernel's struct {strukt} has no member {path}")]
    NoMember {
        /// The struct asked for.
        strukt: String,
        /// The path asked for.
        path: String,
    },
}

/// What a tracepoint passes as one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// A pointer to the struct of this name.
    Struct(String),
    /// A pointer to something else.
    Pointer,
    /// A number of any kind.
    Scalar,
}

/// A member, as a path led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    /// From the start of the outermost struct.
    bits: u64,
    type_id: u32,
    bitfield: bool,
}

/// The kernel's types.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    /// Start of the string section, and its length.
    strings: (usize, usize),
    /// Position of each type's record, by id - 1 (id 0 is void).
    types: Vec<usize>,
}

/// The kinds that are looked into (`BTF_KIND_*`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// One record's head.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Number of members, parameters ...
    count: u32,
    flag: bool,
    /// A size in bytes or a type id, as the kind has it.
    size_or_type: u32,
    /// Position of what follows the head.
    body: usize,
}

impl Btf {
    /// Reads the running kernel's types.
    ///
    /// # Errors
    /// If there are none, or they are malformed.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::read(Path::new(VMLINUX))
    }

    /// Reads types from a file.
    ///
    /// # Errors
    /// If it cannot be read or is malformed.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let data = fs::read(path).map_err(|source| BtfError::Read { path: path.display().to_string(), source })?;
        Self::parse(data)
    }

    /// Takes the bytes of a BTF section.
    ///
    /// # Errors
    /// If they are malformed.
    pub fn parse(data: Vec<u8>) -> Result<Self, BtfError> {
        const HEADER: BtfError = BtfError::Malformed("the header is cut off");
        if u16_at(&data, 0).ok_or(HEADER)? != 0xeb9f {
            return Err(BtfError::Malformed("the magic number is not that of BTF in this machine's byte order"));
        }
        let field = |position| u32_at(&data, position).map(|value| value as usize).ok_or(HEADER);
        let header = field(4)?;
        let (type_start, type_size) = (header.saturating_add(field(8)?), field(12)?);
        let (string_start, string_size) = (header.saturating_add(field(16)?), field(20)?);
        let type_end = type_start.saturating_add(type_size);
        if type_end > data.len() || string_start.saturating_add(string_size) > data.len() {
            return Err(BtfError::Malformed("a section ends behind the end of the file"));
        }
        let mut btf = Self { data, strings: (string_start, string_size), types: Vec::new() };
        let mut position = type_start;
        while position < type_end {
            let record = btf.head(position).ok_or(BtfError::Malformed("a type is cut off"))?;
            btf.types.push(position);
            let size = body_size(&record).ok_or(BtfError::Malformed("a type of unknown kind"))?;
            position = record.body.saturating_add(size);
        }
        if position != type_end {
            return Err(BtfError::Malformed("the last type is cut off"));
        }
        Ok(btf)
    }

    /// Number of types.
    #[must_use]
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// Whether there is no type at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.types.is_empty()
    }

    /// Byte offset of a member from the start of a struct; `path` as in `a.b[1].c`.
    ///
    /// # Errors
    /// If the struct or the member is not there, or it is a bit field.
    pub fn member_offset(&self, strukt: &str, path: &str) -> Result<u32, BtfError> {
        let member = self.member(strukt, path)?;
        if member.bitfield || member.bits % 8 != 0 {
            return Err(BtfError::NoMember { strukt: strukt.into(), path: format!("{path} that is not a bit field") });
        }
        u32::try_from(member.bits / 8).map_err(|_| BtfError::Malformed("an offset is too large"))
    }

    /// Number of elements of an array member; 0 for a flexible one.
    ///
    /// # Errors
    /// If there is no such array.
    pub fn array_len(&self, strukt: &str, path: &str) -> Result<u32, BtfError> {
        let member = self.member(strukt, path)?;
        self.resolve(member.type_id)
            .filter(|array| array.kind == kind::ARRAY)
            .and_then(|array| u32_at(&self.data, array.body + 8))
            .ok_or_else(|| BtfError::NoMember { strukt: strukt.into(), path: format!("{path}[]") })
    }

    /// Size of a struct in bytes.
    ///
    /// # Errors
    /// If there is no such struct.
    pub fn struct_size(&self, name: &str) -> Result<u32, BtfError> {
        self.named(kind::STRUCT, name)
            .map(|(_, strukt)| strukt.size_or_type)
            .ok_or_else(|| BtfError::NoType { kind: "struct", name: name.into() })
    }

    /// Names and values of an enumeration, in the order of its declaration; unsigned values beyond `i64` are left out.
    ///
    /// # Errors
    /// If there is none of this name, or it is cut off.
    pub fn enumeration(&self, name: &str) -> Result<Vec<(&str, i64)>, BtfError> {
        let of_kind = |kind| self.named(kind, name).map(|(_, it)| it);
        let it = of_kind(kind::ENUM)
            .or_else(|| of_kind(kind::ENUM64))
            .ok_or_else(|| BtfError::NoType { kind: "enum", name: name.into() })?;
        // The flag says that values are signed.
        let (wide, signed) = (it.kind == kind::ENUM64, it.flag);
        let step = if wide { 12 } else { 8 };
        let one = |index: usize| -> Option<(&str, Option<i64>)> {
            let position = it.body + step * index;
            let label = self.string(u32_at(&self.data, position)?)?;
            let low = u32_at(&self.data, position + 4)?;
            let value = if wide {
                let all = u64::from(u32_at(&self.data, position + 8)?) << 32 | u64::from(low);
                if signed { Some(all.cast_signed()) } else { i64::try_from(all).ok() }
            } else if signed {
                Some(i64::from(low.cast_signed()))
            } else {
                Some(i64::from(low))
            };
            Some((label, value))
        };
        let mut values = Vec::with_capacity(it.count as usize);
        for index in 0..it.count as usize {
            let (label, value) = one(index).ok_or(BtfError::Malformed("an enumeration is cut off"))?;
            values.extend(value.map(|value| (label, value)));
        }
        Ok(values)
    }

    /// The arguments of a tracepoint, without the hidden first one; from `btf_trace_NAME`.
    ///
    /// # Errors
    /// If the kernel has no such tracepoint.
    pub fn tracepoint(&self, name: &str) -> Result<Vec<Argument>, BtfError> {
        let missing = || BtfError::NoType { kind: "tracepoint", name: name.into() };
        let (_, typedef) = self.named(kind::TYPEDEF, &format!("btf_trace_{name}")).ok_or_else(missing)?;
        let mut proto = self.resolve(typedef.size_or_type).ok_or_else(missing)?;
        if proto.kind == kind::PTR {
            proto = self.resolve(proto.size_or_type).ok_or_else(missing)?;
        }
        if proto.kind != kind::FUNC_PROTO {
            return Err(missing());
        }
        (1..proto.count as usize)
            .map(|index| {
                u32_at(&self.data, proto.body + 8 * index + 4)
                    .map(|id| self.argument(id))
                    .ok_or(BtfError::Malformed("a parameter is cut off"))
            })
            .collect()
    }

    /// Whether the kernel has a function of this name that its types tell of.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.named(kind::FUNC, name).is_some()
    }

    fn argument(&self, type_id: u32) -> Argument {
        match self.resolve(type_id) {
            Some(pointer) if pointer.kind == kind::PTR => match self.resolve(pointer.size_or_type) {
                Some(target) if target.kind == kind::STRUCT => {
                    self.string(target.name).map_or(Argument::Pointer, |name| Argument::Struct(name.to_owned()))
                }
                _ => Argument::Pointer,
            },
            _ => Argument::Scalar,
        }
    }

    fn member(&self, strukt: &str, path: &str) -> Result<Member, BtfError> {
        let (id, _) =
            self.named(kind::STRUCT, strukt).ok_or_else(|| BtfError::NoType { kind: "struct", name: strukt.into() })?;
        let mut at = Member { bits: 0, type_id: id, bitfield: false };
        for segment in path.split('.') {
            at = self
                .step(at, segment)
                .ok_or_else(|| BtfError::NoMember { strukt: strukt.into(), path: path.into() })?;
        }
        Ok(at)
    }

    /// One segment of a path: a name, perhaps with an index.
    fn step(&self, from: Member, segment: &str) -> Option<Member> {
        let (name, index) = match segment.strip_suffix(']').and_then(|rest| rest.split_once('[')) {
            Some((name, index)) => (name, Some(index.parse::<u32>().ok()?)),
            None => (segment, None),
        };
        let mut found = self.find(self.resolve(from.type_id)?, name, MAX_DEPTH)?;
        found.bits = found.bits.checked_add(from.bits)?;
        if let Some(index) = index {
            let array = self.resolve(found.type_id).filter(|array| array.kind == kind::ARRAY)?;
            let element = u32_at(&self.data, array.body)?;
            let skip = self.size(element, MAX_DEPTH)?.checked_mul(u64::from(index))?.checked_mul(8)?;
            found = Member { bits: found.bits.checked_add(skip)?, type_id: element, bitfield: false };
        }
        Some(found)
    }

    /// A member of a struct or union, looked for through anonymous members.
    fn find(&self, strukt: Type, name: &str, depth: u32) -> Option<Member> {
        if depth == 0 || !matches!(strukt.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for index in 0..strukt.count as usize {
            let position = strukt.body + 12 * index;
            let (member, type_id) = (u32_at(&self.data, position)?, u32_at(&self.data, position + 4)?);
            let raw = u32_at(&self.data, position + 8)?;
            let (bits, width) = if strukt.flag { (raw & 0x00ff_ffff, raw >> 24) } else { (raw, 0) };
            let here = Member { bits: u64::from(bits), type_id, bitfield: width != 0 };
            let label = self.string(member)?;
            if label == name {
                return Some(here);
            }
            if label.is_empty()
                && let Some(inner) = self.resolve(type_id).and_then(|inner| self.find(inner, name, depth - 1))
            {
                return Some(Member { bits: inner.bits + here.bits, ..inner });
            }
        }
        None
    }

    fn size(&self, type_id: u32, depth: u32) -> Option<u64> {
        let depth = depth.checked_sub(1)?;
        let it = self.resolve(type_id)?;
        match it.kind {
            kind::PTR => Some(8),
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => Some(u64::from(it.size_or_type)),
            kind::ARRAY => {
                let count = u32_at(&self.data, it.body + 8)?;
                self.size(u32_at(&self.data, it.body)?, depth)?.checked_mul(u64::from(count))
            }
            _ => None,
        }
    }

    /// The type behind typedefs and qualifiers; `None` for void.
    fn resolve(&self, mut type_id: u32) -> Option<Type> {
        for _ in 0..MAX_DEPTH {
            let it = self.by_id(type_id)?;
            match it.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    type_id = it.size_or_type;
                }
                _ => return Some(it),
            }
        }
        None
    }

    fn by_id(&self, type_id: u32) -> Option<Type> {
        let index = usize::try_from(type_id.checked_sub(1)?).ok()?;
        self.head(*self.types.get(index)?)
    }

    fn named(&self, kind: u32, name: &str) -> Option<(u32, Type)> {
        self.types.iter().zip(1_u32..).find_map(|(position, id)| {
            let it = self.head(*position)?;
            (it.kind == kind && self.string(it.name) == Some(name)).then_some((id, it))
        })
    }

    fn head(&self, position: usize) -> Option<Type> {
        let info = u32_at(&self.data, position.checked_add(4)?)?;
        Some(Type {
            name: u32_at(&self.data, position)?,
            kind: (info >> 24) & 0x1f,
            count: info & 0xffff,
            flag: info >> 31 == 1,
            size_or_type: u32_at(&self.data, position.checked_add(8)?)?,
            body: position.checked_add(12)?,
        })
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let (start, size) = self.strings;
        let section = self.data.get(start..start.checked_add(size)?)?;
        let rest = section.get(usize::try_from(offset).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }
}

/// Bytes behind the head of a record; `None` for a kind that is newer than this code.
fn body_size(record: &Type) -> Option<usize> {
    let count = record.count as usize;
    Some(match record.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
        kind::ENUM | kind::FUNC_PROTO => 8 * count,
        // Pointer, forward, typedef, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn u16_at(data: &[u8], position: usize) -> Option<u16> {
    data.get(position..position.checked_add(2)?)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(data: &[u8], position: usize) -> Option<u32> {
    data.get(position..position.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
pub(super) mod tests;
