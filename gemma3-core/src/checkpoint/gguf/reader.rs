//! A cursor over bytes that never reads past their end and never overflows.

use super::GgufError;

/// Reads little-endian values from the front of `bytes`.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// A cursor at byte `offset` of `bytes` (at their end, if there are fewer).
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset: offset.min(bytes.len()) }
    }

    /// Where the cursor stands.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], GgufError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let taken = usize::try_from(len).ok().and_then(|len| rest.get(..len));
        let Some(taken) = taken else {
            return Err(GgufError::Truncated {
                what: what.to_owned(),
                offset: self.offset as u64,
                expected: len,
                found: rest.len() as u64,
            });
        };
        // No overflow: `taken` lies within `bytes`.
        self.offset += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let bytes = self.take(N as u64, what)?;
        let mut array = [0; N];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    pub(super) fn u8(&mut self, what: &str) -> Result<u8, GgufError> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self, what: &str) -> Result<u16, GgufError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length-prefixed UTF-8 string.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a str, GgufError> {
        let len = self.u64(what)?;
        let offset = self.offset as u64;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what: what.to_owned(), offset })
    }
}
