//! A line of a log as runtimes write it: `2016-10-06T00:17:09.669794202Z stdout F what was said`.
//!
//! The format is of the CRI (staging/src/k8s.io/cri-client/pkg/logs/logs.go, parseCRILog, release 1.36): the time in RFC 3339 with
//! nanoseconds, the stream, tags with ':' between, of which the first is `P` where the line goes on in the next one, and what was
//! said. Pure.
//!
//! Properties (tested): whatever the bytes, reading them neither panics nor loses one of what was said; what is written is read back.

use jiff::Timestamp;

/// Which stream was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CriLine<'a> {
    /// When the runtime read it.
    pub at: Timestamp,
    /// From where.
    pub stream: Stream,
    /// It goes on in the next line of its stream.
    pub partial: bool,
    /// What was said; its newline is in it where the line is whole.
    pub text: &'a [u8],
}

/// These bytes are no line of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The head ends before this part.
    #[error("{0} is not found")]
    Short(&'static str),
    /// The time is none.
    #[error("the timestamp is not in the form of RFC 3339")]
    Time,
    /// The stream is none.
    #[error("the stream is neither stdout nor stderr")]
    Stream,
}

/// Reads one line, with or without its newline.
///
/// # Errors
/// It is not in the format.
pub fn parse(line: &[u8]) -> Result<CriLine<'_>, LineError> {
    let (at, rest) = word(line).ok_or(LineError::Short("timestamp"))?;
    let at = std::str::from_utf8(at).ok().and_then(|at| at.parse().ok()).ok_or(LineError::Time)?;
    let (stream, rest) = word(rest).ok_or(LineError::Short("stream"))?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err(LineError::Stream),
    };
    let (tags, text) = word(rest).ok_or(LineError::Short("tag"))?;
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    let text = if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    Ok(CriLine { at, stream, partial, text })
}

/// Up to the first space, and what comes after it.
fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a15_3_lines_are_read_as_the_kubelet_does() {
        let read = |line: &str| {
            parse(line.as_bytes()).map(|line| {
                let text = String::from_utf8_lossy(line.text).into_owned();
                (line.at.to_string(), line.stream, line.partial, text)
            })
        };
        let at = || "2016-10-06T00:17:09.669794202Z".to_owned();
        for (line, stream, partial, text) in [
            ("2016-10-06T00:17:09.669794202Z stdout P log content 1\n", Stream::Stdout, true, "log content 1"),
            ("2016-10-06T00:17:09.669794202Z stderr F log content 2\n", Stream::Stderr, false, "log content 2\n"),
            ("2016-10-06T00:17:09.669794202Z stdout F ", Stream::Stdout, false, ""),
            ("2016-10-06T00:17:09.669794202Z stdout P:later:tags x", Stream::Stdout, true, "x"),
            ("2016-10-06T00:17:09.669794202Z stdout F  two  spaces", Stream::Stdout, false, " two  spaces"),
            ("2016-10-06T02:17:09.669794202+02:00 stdout F x", Stream::Stdout, false, "x"),
        ] {
            assert_eq!(read(line), Ok((at(), stream, partial, text.to_owned())), "{line}");
        }
        for (line, error) in [
            ("", LineError::Short("timestamp")),
            ("2016-10-06T00:17:09.669794202Z", LineError::Short("timestamp")),
            ("yesterday stdout F x", LineError::Time),
            ("2016-10-06T00:17:09Z stdout", LineError::Short("stream")),
            ("2016-10-06T00:17:09Z stdin F x", LineError::Stream),
            ("2016-10-06T00:17:09Z stdout F", LineError::Short("tag")),
        ] {
            assert_eq!(read(line), Err(error), "{line}");
        }
    }

    proptest! {
        #[test]
        fn a15_3_any_bytes_are_a_line_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        /// Near to a line: one that was cut, or has bytes changed.
        #[test]
        fn a15_3_a_broken_line_is_a_line_or_an_error(
            text in prop::collection::vec(any::<u8>(), 0..40),
            cut in 0_usize..80,
            at in 0_usize..80,
            byte: u8,
        ) {
            let mut line = [b"2016-10-06T00:17:09.669794202Z stdout F ".as_slice(), &text].concat();
            line.truncate(cut);
            if let Some(place) = line.get_mut(at) {
                *place = byte;
            }
            if let Ok(read) = parse(&line) {
                prop_assert!(line.ends_with(read.text) || line.ends_with(b"\n"));
            }
        }

        #[test]
        fn a15_3_what_is_written_is_read_back(
            nanos in 0_i128..4_000_000_000_000_000_000,
            err: bool,
            partial: bool,
            text in prop::collection::vec(any::<u8>().prop_filter("one line", |b| *b != b'\n'), 0..200),
        ) {
            let at = Timestamp::from_nanosecond(nanos).unwrap();
            let (stream, name) = if err { (Stream::Stderr, "stderr") } else { (Stream::Stdout, "stdout") };
            let head = format!("{at:.9} {name} {} ", if partial { "P" } else { "F" });
            let line = [head.as_bytes(), &text, b"\n"].concat();
            let said: &[u8] = if partial { &text } else { &line[head.len()..] };
            prop_assert_eq!(parse(&line), Ok(CriLine { at, stream, partial, text: said }));
        }
    }
}
