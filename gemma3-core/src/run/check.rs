//! Whether tokens may enter a model: the one text that says so, for sessions, which look when tokens are appended, and
//! for passes.

use burn::tensor::Device;

use super::{ForwardError, Row};
use crate::cache::CacheError;
use crate::config::TextConfig;
use crate::ops::machine::Input;
use crate::ops::vectors::EmbeddedSpan;

/// Checks a row against the model and against its cache.
pub(crate) fn check_row(row: &Row<'_>, config: &TextConfig, device: &Device) -> Result<(), ForwardError> {
    match row.input {
        Input::Ids(ids) => check_input(ids, &[], config)?,
        Input::Placed { ids, spans } => check_input(ids, spans, config)?,
        Input::Chosen => {}
    }
    let (count, cache) = (row.input.len(), &*row.cache);
    if count == 0 {
        return Err(ForwardError::EmptyInput);
    }
    // Kernels index with the cache's sizes.
    cache.check(config, device)?;
    if count > cache.chunk() {
        return Err(CacheError::ChunkTooLong { count, chunk: cache.chunk() }.into());
    }
    let ahead = if matches!(row.input, Input::Chosen) { cache.ahead() } else { 0 };
    if count + ahead > cache.remaining() {
        let (len, capacity) = (cache.len(), cache.capacity());
        return Err(CacheError::Full { count, len, capacity }.into());
    }
    Ok(())
}

/// Checks tokens of which some are given as vectors: spans in order, within the ids, as wide as the model; ids outside
/// of them in the vocabulary.
pub(crate) fn check_input(
    ids: &[u32],
    spans: &[EmbeddedSpan],
    config: &TextConfig,
) -> Result<(), ForwardError> {
    let mut after = 0;
    for span in spans {
        let (range, tokens) = (span.range(), ids.len());
        let (expected, found) = (config.hidden_size, span.vectors.width());
        if found != expected {
            return Err(ForwardError::WrongWidth { expected, found });
        }
        if range.start < after || range.end > tokens || range.is_empty() {
            return Err(ForwardError::SpanOutOfOrder { span: range, after, tokens });
        }
        check_ids(&ids[after..range.start], config)?;
        after = range.end;
    }
    check_ids(&ids[after..], config)
}

fn check_ids(ids: &[u32], config: &TextConfig) -> Result<(), ForwardError> {
    let vocab_size = config.vocab_size;
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(ForwardError::UnknownToken { id: *id, vocab_size }),
        None => Ok(()),
    }
}
