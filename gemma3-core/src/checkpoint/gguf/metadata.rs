//! The key-value section of a GGUF file.
//!
//! Scalars are decoded when the file is opened; arrays (the vocabulary has 262,144 strings, scores
//! and types) are checked then and stay where they are.

use std::collections::BTreeMap;
use std::ops::Range;

use super::GgufError;
use super::reader::Reader;
use crate::checkpoint::CheckpointBytes;
use crate::config::ConfigError;

/// The metadata of a GGUF file. Getters give `Ok(None)` for an absent key and an error that names
/// the key for a value of another type.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    bytes: CheckpointBytes,
    values: BTreeMap<String, Value>,
}

#[derive(Debug, Clone)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array that stays in the file.
#[derive(Debug, Clone)]
struct Array {
    element: ValueType,
    len: usize,
    range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_id(id: u32, key: &str) -> Result<Self, GgufError> {
        const BY_ID: [ValueType; 13] = [
            ValueType::U8,
            ValueType::I8,
            ValueType::U16,
            ValueType::I16,
            ValueType::U32,
            ValueType::I32,
            ValueType::F32,
            ValueType::Bool,
            ValueType::String,
            ValueType::Array,
            ValueType::U64,
            ValueType::I64,
            ValueType::F64,
        ];
        let value_type = usize::try_from(id).ok().and_then(|id| BY_ID.get(id));
        value_type.copied().ok_or_else(|| GgufError::UnknownValueType { key: key.to_owned(), found: id })
    }

    /// Bytes of a value, unless that depends on the value.
    fn fixed_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => "an unsigned integer",
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => "a signed integer",
            Self::F32 | Self::F64 => "a float",
            Self::Bool => "a boolean",
            Self::String => "a string",
            Self::Array => "an array",
        }
    }
}

impl GgufMetadata {
    /// Reads `count` key-value pairs.
    pub(super) fn parse(
        bytes: &CheckpointBytes,
        reader: &mut Reader<'_>,
        count: u64,
    ) -> Result<Self, GgufError> {
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = reader.string("a metadata key")?.to_owned();
            let value_type = ValueType::from_id(reader.u32(&key)?, &key)?;
            let value = read_value(reader, value_type, &key)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(GgufError::DuplicateKey { key });
            }
        }
        Ok(Self { bytes: bytes.clone(), values })
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A non-negative integer of any width.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type or is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        self.scalar(key, "a non-negative integer", |value| match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A non-negative integer of at most 32 bits, such as a token id.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type or range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        self.u64(key)?
            .map(|number| {
                u32::try_from(number).map_err(|_| ConfigError::invalid(key, "an integer below 2^32", number))
            })
            .transpose()
    }

    /// A float of either width. An f32 becomes the f64 with the same shortest decimal: files store
    /// 1e-6 as an f32, and 1e-6 is what they mean.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn f64(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.scalar(key, "a float", |value| match value {
            Value::F32(number) => Some(number.to_string().parse().unwrap_or((*number).into())),
            Value::F64(number) => Some(*number),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.scalar(key, "a boolean", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn str(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        self.scalar(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An array of strings, read out of the file one by one.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn strings(&self, key: &str) -> Result<Option<GgufStrings<'_>>, ConfigError> {
        let array = self.array(key, "an array of strings", &[ValueType::String])?;
        Ok(array.map(|array| {
            let bytes = self.bytes.as_slice().get(array.range.clone());
            GgufStrings { reader: Reader::new(bytes.unwrap_or_default(), 0), remaining: array.len }
        }))
    }

    /// An array of f32.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, ConfigError> {
        let array = self.array(key, "an array of f32", &[ValueType::F32])?;
        Ok(array.map(|array| self.words(array, f32::from_le_bytes)))
    }

    /// An array of i32.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, ConfigError> {
        let array = self.array(key, "an array of i32", &[ValueType::I32])?;
        Ok(array.map(|array| self.words(array, i32::from_le_bytes)))
    }

    /// An array of non-negative 32-bit integers.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type or holds a negative number.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, ConfigError> {
        const EXPECTED: &str = "an array of non-negative 32-bit integers";
        let array = self.array(key, EXPECTED, &[ValueType::U32, ValueType::I32])?;
        let Some(array) = array else { return Ok(None) };
        let values = self.words(array, u32::from_le_bytes);
        let signed = array.element == ValueType::I32;
        if signed && values.iter().any(|value| i32::try_from(*value).is_err()) {
            return Err(ConfigError::invalid(key, EXPECTED, "a negative number"));
        }
        Ok(Some(values))
    }

    /// An integer or an array of integers, of any width and sign; empty for an absent key. Those beyond i64
    /// become its largest.
    pub(super) fn integers(&self, key: &str) -> Result<Vec<i64>, ConfigError> {
        let values = self.scalar(key, "an integer or an array of integers", |value| match value {
            Value::Unsigned(number) => Some(vec![saturated(*number)]),
            Value::Signed(number) => Some(vec![*number]),
            Value::Array(array) => self.array_of_integers(array),
            _ => None,
        })?;
        Ok(values.unwrap_or_default())
    }

    /// The integers of an array; `None` if its elements are none.
    fn array_of_integers(&self, array: &Array) -> Option<Vec<i64>> {
        let mut reader = Reader::new(self.bytes.as_slice(), array.range.start);
        let mut numbers = Vec::new();
        // Not `with_capacity`: the length is a number of the file. Each turn reads on or ends.
        for _ in 0..array.len {
            numbers.push(match array.element {
                ValueType::U8 => reader.u8("").ok()?.into(),
                ValueType::U16 => reader.u16("").ok()?.into(),
                ValueType::U32 => reader.u32("").ok()?.into(),
                ValueType::U64 => saturated(reader.u64("").ok()?),
                ValueType::I8 => reader.u8("").ok()?.cast_signed().into(),
                ValueType::I16 => reader.u16("").ok()?.cast_signed().into(),
                ValueType::I32 => reader.u32("").ok()?.cast_signed().into(),
                ValueType::I64 => reader.u64("").ok()?.cast_signed(),
                _ => return None,
            });
        }
        Some(numbers)
    }

    /// An array of booleans.
    ///
    /// # Errors
    /// [`ConfigError::InvalidField`] if the value has another type.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, ConfigError> {
        let array = self.array(key, "an array of booleans", &[ValueType::Bool])?;
        Ok(array.map(|array| {
            let bytes = self.bytes.as_slice().get(array.range.clone());
            bytes.unwrap_or_default().iter().map(|byte| *byte != 0).collect()
        }))
    }

    /// Whether the value of `key` is an array.
    pub(super) fn is_array(&self, key: &str) -> bool {
        matches!(self.values.get(key), Some(Value::Array(_)))
    }

    fn words<T>(&self, array: &Array, decode: fn([u8; 4]) -> T) -> Vec<T> {
        let bytes = self.bytes.as_slice().get(array.range.clone());
        let (words, _) = bytes.unwrap_or_default().as_chunks::<4>();
        words.iter().map(|word| decode(*word)).collect()
    }

    fn scalar<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(ConfigError::invalid(key, expected, value.describe())),
        }
    }

    fn array(
        &self,
        key: &str,
        expected: &'static str,
        elements: &[ValueType],
    ) -> Result<Option<&Array>, ConfigError> {
        self.scalar(key, expected, |value| match value {
            Value::Array(array) if elements.contains(&array.element) => Some(array),
            _ => None,
        })
    }
}

impl Value {
    fn describe(&self) -> String {
        match self {
            Self::Unsigned(number) => number.to_string(),
            Self::Signed(number) => number.to_string(),
            Self::F32(number) => format!("{number:?}"),
            Self::F64(number) => format!("{number:?}"),
            Self::Bool(flag) => flag.to_string(),
            Self::String(_) => ValueType::String.name().to_owned(),
            Self::Array(array) => format!("an array of {} values, each {}", array.len, array.element.name()),
        }
    }
}

fn saturated(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn read_value(reader: &mut Reader<'_>, value_type: ValueType, key: &str) -> Result<Value, GgufError> {
    Ok(match value_type {
        ValueType::U8 => Value::Unsigned(reader.u8(key)?.into()),
        ValueType::U16 => Value::Unsigned(reader.u16(key)?.into()),
        ValueType::U32 => Value::Unsigned(reader.u32(key)?.into()),
        ValueType::U64 => Value::Unsigned(reader.u64(key)?),
        ValueType::I8 => Value::Signed(reader.u8(key)?.cast_signed().into()),
        ValueType::I16 => Value::Signed(reader.u16(key)?.cast_signed().into()),
        ValueType::I32 => Value::Signed(reader.u32(key)?.cast_signed().into()),
        ValueType::I64 => Value::Signed(reader.u64(key)?.cast_signed()),
        ValueType::F32 => Value::F32(f32::from_bits(reader.u32(key)?)),
        ValueType::F64 => Value::F64(f64::from_bits(reader.u64(key)?)),
        ValueType::Bool => Value::Bool(checked_bool(reader.u8(key)?, key)?),
        ValueType::String => Value::String(reader.string(key)?.to_owned()),
        ValueType::Array => Value::Array(skip_array(reader, key)?),
    })
}

/// Checks an array's elements and moves past them; allocates nothing.
fn skip_array(reader: &mut Reader<'_>, key: &str) -> Result<Array, GgufError> {
    let element = ValueType::from_id(reader.u32(key)?, key)?;
    let len = reader.u64(key)?;
    let start = reader.offset();
    match element.fixed_bytes() {
        Some(bytes) => {
            // Saturating: a length that overflows is longer than any file, which `take` finds.
            let values = reader.take(len.saturating_mul(bytes), key)?;
            if element == ValueType::Bool {
                for byte in values {
                    checked_bool(*byte, key)?;
                }
            }
        }
        None if element == ValueType::Array => {
            return Err(GgufError::NestedArray { key: key.to_owned() });
        }
        None => {
            // Ends at the file's end at the latest: each string has at least its own length.
            for _ in 0..len {
                reader.string(key)?;
            }
        }
    }
    Ok(Array {
        element,
        // Each element took at least a byte of the file, so the count fits.
        len: usize::try_from(len).unwrap_or(usize::MAX),
        range: start..reader.offset(),
    })
}

fn checked_bool(byte: u8, key: &str) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(GgufError::InvalidBool { key: key.to_owned(), found }),
    }
}

/// The strings of an array, in order, borrowed from the file. They were checked when the file was
/// opened; one that isn't a string any more, because the bytes changed since, ends the iteration.
#[derive(Debug, Clone)]
pub struct GgufStrings<'a> {
    reader: Reader<'a>,
    remaining: usize,
}

impl<'a> Iterator for GgufStrings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.remaining = self.remaining.checked_sub(1)?;
        let next = self.reader.string("an array").ok();
        if next.is_none() {
            self.remaining = 0;
        }
        next
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl ExactSizeIterator for GgufStrings<'_> {}
