//! Images that have been encoded before, found again by what they show.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};

use crate::encode::{EncodeOptions, EncodedImage};
use crate::error::VisionError;
use crate::model::VisionModel;
use crate::preprocess::Image;

/// Encodes images and keeps the results, so that an image that is shown again costs a hash.
///
/// An entry is keyed by the SHA-256 of everything that decides it: the decoded pixels, their size, the
/// preprocessing and the settings of pan-and-scan. When the soft tokens outgrow the limit those unused for
/// longest are dropped. Cloning shares the cache; it can be used from several threads.
#[derive(Debug, Clone)]
pub struct ImageCache {
    model: VisionModel,
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    bytes: u64,
    max_bytes: u64,
    /// Counts uses; the entry with the smallest number was unused for longest.
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    image: EncodedImage,
    last_use: u64,
}

type Key = [u8; 32];

impl ImageCache {
    /// An empty cache for a model, which keeps up to `max_bytes` of soft tokens (on the model's device): an
    /// image of the 4B has 2.6 MB.
    pub fn new(model: &VisionModel, max_bytes: u64) -> Self {
        let entries = Entries { max_bytes, ..Entries::default() };
        Self { model: model.clone(), entries: Arc::new(Mutex::new(entries)) }
    }

    /// The model whose soft tokens are kept.
    pub fn model(&self) -> &VisionModel {
        &self.model
    }

    /// Number of images kept.
    pub fn len(&self) -> usize {
        self.lock().by_key.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of soft tokens kept.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut entries = self.lock();
        entries.by_key.clear();
        entries.bytes = 0;
    }

    /// [`VisionModel::encode`] for the images that are not kept; an image that is given twice is encoded
    /// once.
    ///
    /// # Errors
    ///
    /// Those of [`VisionModel::encode`].
    pub fn encode(
        &self,
        images: &[Image],
        options: &EncodeOptions,
    ) -> Result<Vec<EncodedImage>, VisionError> {
        let keys: Vec<Key> = images.iter().map(|image| self.key(image, options)).collect();
        let mut found: HashMap<Key, EncodedImage> = HashMap::new();
        let mut missing: Vec<(Key, Image)> = Vec::new();
        for (key, image) in keys.iter().zip(images) {
            if found.contains_key(key) || missing.iter().any(|(other, _)| other == key) {
                continue;
            }
            // The lock is not held while encoding: other threads go on.
            match self.lock().get(key) {
                Some(encoded) => _ = found.insert(*key, encoded),
                None => missing.push((*key, image.clone())),
            }
        }
        let (new_keys, new_images): (Vec<Key>, Vec<Image>) = missing.into_iter().unzip();
        for (key, encoded) in new_keys.into_iter().zip(self.model.encode(&new_images, options)?) {
            self.lock().insert(key, encoded.clone());
            found.insert(key, encoded);
        }
        let missing = || VisionError::Bug { what: "an image is neither kept nor encoded".to_owned() };
        keys.iter().map(|key| found.get(key).cloned().ok_or_else(missing)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A panic elsewhere cannot leave the entries inconsistent in a way that matters.
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn key(&self, image: &Image, options: &EncodeOptions) -> Key {
        let mut hash = Sha256::new();
        hash.update(image.width().to_le_bytes());
        hash.update(image.height().to_le_bytes());
        let config = self.model.preprocessor().config();
        hash.update((config.image_size as u64).to_le_bytes());
        hash.update(config.rescale_factor.to_le_bytes());
        for value in config.image_mean.iter().chain(&config.image_std) {
            hash.update(value.to_le_bytes());
        }
        match &options.pan_and_scan {
            None => hash.update([0]),
            Some(pan_and_scan) => {
                hash.update([1]);
                // Its fields are numbers, which `Debug` writes without loss.
                hash.update(format!("{pan_and_scan:?}"));
            }
        }
        hash.update([0xff]);
        hash.update(image.pixels());
        hash.finalize().into()
    }
}

impl Entries {
    fn get(&mut self, key: &Key) -> Option<EncodedImage> {
        self.clock += 1;
        let entry = self.by_key.get_mut(key)?;
        entry.last_use = self.clock;
        Some(entry.image.clone())
    }

    fn insert(&mut self, key: Key, image: EncodedImage) {
        if image.bytes() > self.max_bytes {
            return;
        }
        self.clock += 1;
        self.bytes += image.bytes();
        let entry = Entry { image, last_use: self.clock };
        if let Some(old) = self.by_key.insert(key, entry) {
            self.bytes -= old.image.bytes();
        }
        while self.bytes > self.max_bytes {
            let oldest = self.by_key.iter().min_by_key(|(_, entry)| entry.last_use).map(|(key, _)| *key);
            let Some(old) = oldest.and_then(|key| self.by_key.remove(&key)) else { break };
            self.bytes -= old.image.bytes();
        }
    }
}
