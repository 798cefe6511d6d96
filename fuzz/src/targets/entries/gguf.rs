//! GGUF files: as a language model, as an image encoder, and the vocabulary inside.

use gemma3::Mmproj;
use gemma3::core::checkpoint::{Checkpoint, GgufFile};
use gemma3::tokenizer::Tokenizer;
use gemma3::vision::VisionWeights;

use super::super::bounds::{check_error, within};
use super::{checkpoint, text};

/// Names and shapes as values take several times their bytes in the file; weights of 4 bits become 32.
const MODEL_BYTES_PER_BYTE: usize = 64;
/// A token of one letter takes 17 bytes of the file, and entries in tables of texts, ids, merges and bytes.
const VOCABULARY_BYTES_PER_BYTE: usize = 256;

/// Reads one file.
pub fn run(file: &[u8]) {
    within(MODEL_BYTES_PER_BYTE * file.len(), || {
        checkpoint::check(Checkpoint::from_gguf_bytes(file.to_vec()), file.len());
        image_encoder(file);
    });
    within(VOCABULARY_BYTES_PER_BYTE * file.len(), || vocabulary(file));
}

fn image_encoder(file: &[u8]) {
    const TEXT_HIDDEN_SIZE: usize = 6;
    match Mmproj::from_bytes(file.to_vec()) {
        Ok(mmproj) => {
            checkpoint::check_vision(&VisionWeights::in_mmproj(&mmproj, TEXT_HIDDEN_SIZE), file.len())
        }
        Err(error) => check_error(&error),
    }
}

/// The vocabulary counts even where the model around it is not Gemma's.
fn vocabulary(file: &[u8]) {
    let Ok(file) = GgufFile::from_bytes(file.to_vec()) else { return };
    let metadata = file.metadata();
    for key in metadata.keys() {
        if let Ok(Some(strings)) = metadata.strings(key) {
            assert_eq!(strings.len(), strings.count(), "{key}");
        }
    }
    match gemma3::gguf_vocabulary(metadata) {
        Ok(Some(vocabulary)) => match Tokenizer::from_gguf(vocabulary) {
            Ok(tokenizer) => text::check(&tokenizer),
            Err(error) => check_error(&error),
        },
        Ok(None) => {}
        Err(error) => check_error(&error),
    }
}
