//! Reads Postgres' binary format: it checks every length and trusts nothing.

/// Why a value cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The bytes do not follow the type's binary format.
    #[error("its bytes on the wire are not of its type")]
    Malformed,
    /// The text is not UTF-8; a `SQL_ASCII` database may hold such texts.
    #[error("its text is not UTF-8")]
    NotUtf8,
    /// A column with the codec `json` holds text that is not JSON.
    #[error("its text is not JSON")]
    NotJson,
    /// The type has no codec; [`super::RowEncoder::new`] refuses such columns.
    #[error("its type has no codec")]
    NoCodec,
}

/// The bytes of a value that have not been read yet.
#[derive(Clone, Copy)]
pub(in crate::domain) struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    pub(in crate::domain) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(in crate::domain) fn take<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(ValueError::Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(in crate::domain) fn i16(&mut self) -> Result<i16, ValueError> {
        self.take().map(i16::from_be_bytes)
    }

    pub(in crate::domain) fn u16(&mut self) -> Result<u16, ValueError> {
        self.take().map(u16::from_be_bytes)
    }

    pub(in crate::domain) fn i32(&mut self) -> Result<i32, ValueError> {
        self.take().map(i32::from_be_bytes)
    }

    pub(in crate::domain) fn i64(&mut self) -> Result<i64, ValueError> {
        self.take().map(i64::from_be_bytes)
    }

    /// Reads a length and as many bytes; `None` for the length -1, which means NULL.
    pub(in crate::domain) fn field(&mut self) -> Result<Option<&'a [u8]>, ValueError> {
        let length = self.i32()?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).or(Err(ValueError::Malformed))?;
        let (head, rest) = self.0.split_at_checked(length).ok_or(ValueError::Malformed)?;
        self.0 = rest;
        Ok(Some(head))
    }

    /// The bytes that have not been read yet.
    pub(in crate::domain) fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Refuses bytes after the value's end.
    pub(in crate::domain) fn end(self) -> Result<(), ValueError> {
        if self.0.is_empty() { Ok(()) } else { Err(ValueError::Malformed) }
    }
}

/// The bytes of a value whose type has a fixed length.
pub(in crate::domain) fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], ValueError> {
    <[u8; N]>::try_from(bytes).or(Err(ValueError::Malformed))
}

/// The bytes as text.
pub(in crate::domain) fn utf8(bytes: &[u8]) -> Result<&str, ValueError> {
    str::from_utf8(bytes).or(Err(ValueError::NotUtf8))
}

/// The text of a `jsonb`, which follows the version of its format.
pub(in crate::domain) fn jsonb(bytes: &[u8]) -> Result<&[u8], ValueError> {
    match bytes {
        [1, text @ ..] => Ok(text),
        _ => Err(ValueError::Malformed),
    }
}
