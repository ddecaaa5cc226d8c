//! Values that the kernel keeps with a task, and ends with it.
//!
//! **Approach.** `BPF_MAP_TYPE_TASK_STORAGE` (for tracing programs since 5.12): found from the task itself, without a hash of
//! pids that could be used anew, and without a sweep. aya-ebpf has no type for it; the map is described by BTF, as the kernel
//! wants it: the members' types are the values.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE},
    helpers::generated::bpf_task_storage_get,
};

use crate::kernel::Object;

/// One value of type `T` per task.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the pointers only carry types; nobody follows them, the loader puts a map in their place.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    /// The description of such a map.
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// The value of a task. Where there is none it is made with all bits 0 if `create` is 1, and there is none if it is 0 or
    /// there is no memory.
    ///
    /// # Safety
    /// `task` is a `task_struct` of the context, or from a helper that gives one.
    #[inline(always)]
    pub unsafe fn get(&self, task: Object, create: u64) -> Option<*mut T> {
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: by the caller's word the pointer is one that the verifier takes for a task. The flag 1 is
        // BPF_LOCAL_STORAGE_GET_F_CREATE; without a first value the kernel takes zeroes.
        let value = unsafe { bpf_task_storage_get(map, task.cast_mut().cast(), ptr::null_mut(), create) };
        if value.is_null() { None } else { Some(value.cast()) }
    }
}
