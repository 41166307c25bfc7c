//! What a stream consists of.
//!
//! The plugin `pgoutput` writes the messages of a transaction between its begin and its commit, after the
//! commit: <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};

/// One message of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Frame {
    /// How far the server has read the log.
    pub(in super::super) position: u64,
    /// Whether the server wants to know at once how far we are.
    pub(in super::super) wants_answer: bool,
    pub(in super::super) content: Content,
}

/// The part of the log in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Content {
    /// A transaction begins.
    Begin,
    /// It is whole.
    Commit,
    /// A message that `pg_logical_emit_message` wrote.
    Message {
        /// Its prefix, which says whose it is.
        prefix: Bytes,
        content: Bytes,
    },
    /// Anything else, such as a row of a table that somebody has added to the publication.
    Other,
}

impl Frame {
    /// `None` if the data is none.
    pub(super) fn read(data: Bytes) -> Option<Self> {
        Self::try_read(data).ok().flatten()
    }

    fn try_read(mut data: Bytes) -> Result<Option<Self>, TryGetError> {
        match data.try_get_u8()? {
            b'w' => {
                let (start, end, _sent_at) =
                    (data.try_get_u64()?, data.try_get_u64()?, data.try_get_i64()?);
                let content = Content::read(data)?;
                let position = start.max(end);
                Ok(content.map(|content| Self { position, wants_answer: false, content }))
            }
            b'k' => {
                let (position, _sent_at) = (data.try_get_u64()?, data.try_get_i64()?);
                let wants_answer = data.try_get_u8()? == 1;
                Ok(Some(Self { position, wants_answer, content: Content::Other }))
            }
            _ => Ok(None),
        }
    }
}

impl Content {
    fn read(mut data: Bytes) -> Result<Option<Self>, TryGetError> {
        Ok(Some(match data.try_get_u8()? {
            b'B' => Self::Begin,
            b'C' => Self::Commit,
            b'M' => {
                let (_is_transactional, _position) = (data.try_get_u8()?, data.try_get_u64()?);
                let Some(end) = data.iter().position(|byte| *byte == 0) else { return Ok(None) };
                let prefix = data.split_to(end);
                data.advance(1);
                let length = usize::try_from(data.try_get_u32()?).unwrap_or(usize::MAX);
                if data.len() < length {
                    return Ok(None);
                }
                Self::Message { prefix, content: data.split_to(length) }
            }
            _ => Self::Other,
        }))
    }
}

/// A status update: everything before `position` has arrived, and need not be kept. The time, which the
/// server only shows, is left out.
pub(super) fn status(position: u64, wants_answer: bool) -> BytesMut {
    let mut status = BytesMut::with_capacity(34);
    status.put_u8(b'r');
    for _written_flushed_applied in 0..3 {
        status.put_u64(position);
    }
    status.put_i64(0);
    status.put_u8(u8::from(wants_answer));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn streamed(content: &[u8]) -> Bytes {
        let mut data = BytesMut::new();
        data.put_u8(b'w');
        data.put_u64(7);
        data.put_u64(9);
        data.put_i64(0);
        data.put_slice(content);
        data.freeze()
    }

    #[test]
    fn frames_are_read_and_cut_ones_refused() {
        let message = b"M\x01\0\0\0\0\0\0\0\x05ours\0\0\0\0\x02{}";
        let prefix = Bytes::from_static(b"ours");
        let content = Content::Message { prefix, content: Bytes::from_static(b"{}") };
        let whole = streamed(message);
        let frame = Frame::read(whole.clone()).unwrap();
        assert_eq!(frame, Frame { position: 9, wants_answer: false, content });
        for length in 0..whole.len() {
            assert!(Frame::read(whole.slice(..length)).is_none(), "{length}");
        }
        for (content, expected) in
            [("B…", Content::Begin), ("C…", Content::Commit), ("I…", Content::Other)]
        {
            assert_eq!(Frame::read(streamed(content.as_bytes())).unwrap().content, expected);
        }
        let keepalive = Bytes::from_static(b"k\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\x01");
        let expected = Frame { position: 3, wants_answer: true, content: Content::Other };
        assert_eq!(Frame::read(keepalive).unwrap(), expected);
        assert!(Frame::read(Bytes::from_static(b"x")).is_none());
    }
}
