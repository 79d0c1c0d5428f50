//! The messages a server sends.

use bytes::{BufMut, BytesMut};

/// A column of a result: its name, and the object id and size of its type.
pub(super) type Column = (&'static str, i32, i16);

pub(super) const TEXT: (i32, i16) = (25, -1);
pub(super) const INT8: (i32, i16) = (20, 8);
pub(super) const OID: (i32, i16) = (26, 4);

pub(super) const fn column(name: &'static str, kind: (i32, i16)) -> Column {
    (name, kind.0, kind.1)
}

/// An error that a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(super) fn syntax(message: impl Into<String>) -> Self {
        Self::new("42601", message)
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::new("0A000", message)
    }
}

/// Writes a message: its tag, its length, and what `body` writes.
fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    let mut content = BytesMut::new();
    body(&mut content);
    out.put_u8(tag);
    // Every message written here is far smaller than a length can say.
    out.put_i32(i32::try_from(content.len() + 4).unwrap_or(i32::MAX));
    out.put(content);
}

fn text(out: &mut BytesMut, text: &str) {
    // A NUL would end the text early; none of ours has one.
    out.put_slice(text.split('\0').next().unwrap_or_default().as_bytes());
    out.put_u8(0);
}

pub(super) fn authentication(out: &mut BytesMut, code: i32, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_i32(code);
        out.put_slice(data);
    });
}

pub(super) fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

pub(super) fn backend_key(out: &mut BytesMut, process: i32, key: i32) {
    message(out, b'K', |out| {
        out.put_i32(process);
        out.put_i32(key);
    });
}

pub(super) fn ready(out: &mut BytesMut) {
    message(out, b'Z', |out| out.put_u8(b'I'));
}

/// The versions of the protocol we speak: 3.0, and none of the options that were asked for.
pub(super) fn negotiate_version(out: &mut BytesMut, options: &[String]) {
    message(out, b'v', |out| {
        out.put_i32(3 << 16);
        out.put_i32(i32::try_from(options.len()).unwrap_or(0));
        for option in options {
            text(out, option);
        }
    });
}

pub(super) fn error(out: &mut BytesMut, severity: &str, refusal: &Refusal) {
    message(out, b'E', |out| {
        for (kind, value) in [
            (b'S', severity),
            (b'V', severity),
            (b'C', refusal.code),
            (b'M', &refusal.message),
        ] {
            out.put_u8(kind);
            text(out, value);
        }
        out.put_u8(0);
    });
}

pub(super) fn row_description(out: &mut BytesMut, columns: &[Column]) {
    message(out, b'T', |out| {
        out.put_i16(i16::try_from(columns.len()).unwrap_or(0));
        for (name, type_oid, size) in columns {
            text(out, name);
            out.put_i32(0);
            out.put_i16(0);
            out.put_i32(*type_oid);
            out.put_i16(*size);
            out.put_i32(0);
            out.put_i16(0);
        }
    });
}

pub(super) fn data_row(out: &mut BytesMut, values: &[Option<&[u8]>]) {
    message(out, b'D', |out| {
        out.put_i16(i16::try_from(values.len()).unwrap_or(0));
        for value in values {
            match value {
                Some(value) => {
                    out.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
                    out.put_slice(value);
                }
                None => out.put_i32(-1),
            }
        }
    });
}

/// A result of one row of texts.
pub(super) fn one_row(
    out: &mut BytesMut,
    columns: &[Column],
    values: &[Option<String>],
    tag: &str,
) {
    row_description(out, columns);
    let values: Vec<Option<&[u8]>> = values
        .iter()
        .map(|value| value.as_deref().map(str::as_bytes))
        .collect();
    data_row(out, &values);
    command_complete(out, tag);
}

pub(super) fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| text(out, tag));
}

pub(super) fn copy_out(out: &mut BytesMut) {
    message(out, b'H', |out| out.put_slice(&[0; 3]));
}

pub(super) fn copy_both(out: &mut BytesMut) {
    message(out, b'W', |out| out.put_slice(&[0; 3]));
}

pub(super) fn copy_done(out: &mut BytesMut) {
    message(out, b'c', |_| {});
}
