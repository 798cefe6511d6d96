//! Encoder and projector on a machine, and what the rest of the crate sees of them.

use std::fmt;

use gemma3_core::CancelHandle;
use gemma3_core::model::Vectors;
use gemma3_core::ops::image::ImageMachine;

use crate::error::VisionError;
use crate::projector::Projector;
use crate::siglip::Tower;
use crate::stages::{Observer, Watch};

/// An encoder with its projector, whatever machine they are on.
pub(crate) trait Encode: fmt::Debug + Send + Sync {
    /// `pixels` \[images, channels, side, side\] of at least one image → the soft tokens of each image, which stay on the
    /// device: \[soft tokens, hidden of the decoder\].
    ///
    /// # Errors
    ///
    /// [`VisionError::Cancelled`] if the observer said to stop, or the handle does, between two layers; and a device
    /// that fails.
    fn forward(
        &self,
        pixels: Vec<f32>,
        images: usize,
        observer: Option<Observer<'_>>,
        cancel: Option<&CancelHandle>,
    ) -> Result<Vec<Vectors>, VisionError>;
}

/// An encoder with its projector on a machine.
#[derive(Debug)]
pub(crate) struct Encoder<M: ImageMachine> {
    pub(crate) machine: M,
    pub(crate) tower: Tower<M>,
    pub(crate) projector: Projector<M>,
}

impl<M: ImageMachine> Encode for Encoder<M> {
    fn forward(
        &self,
        pixels: Vec<f32>,
        images: usize,
        observer: Option<Observer<'_>>,
        cancel: Option<&CancelHandle>,
    ) -> Result<Vec<Vectors>, VisionError> {
        let mut watch = Watch::new(observer, cancel);
        // Who looks sees the same on every device: one image after the other.
        let at_once = if watch.is_observed() { 1 } else { self.machine.images_at_once().max(1) };
        if images <= at_once {
            return self.encode(pixels, images, &mut watch);
        }
        let image = pixels.len() / images;
        let mut encoded = Vec::with_capacity(images);
        for pixels in pixels.chunks((at_once * image).max(1)) {
            encoded.extend(self.encode(pixels.to_vec(), pixels.len() / image, &mut watch)?);
        }
        Ok(encoded)
    }
}

impl<M: ImageMachine> Encoder<M> {
    /// Images that go through every operation together.
    fn encode(
        &self,
        pixels: Vec<f32>,
        images: usize,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Vectors>, VisionError> {
        let m = &self.machine;
        let features = self.tower.forward(m, pixels, images, watch)?;
        let soft_tokens = self.projector.forward(m, &features, images, watch)?;
        if images == 1 {
            return Ok(vec![m.vectors(soft_tokens)?]);
        }
        // Each in memory of its own: they are kept and dropped one by one. (GPUs take images one by one.)
        let [_, width] = m.features_shape(&soft_tokens);
        let values = m.look_at_features(&soft_tokens)?.wait()?;
        let each = (values.len() / images.max(1)).max(1);
        Ok(values.chunks(each).map(|own| Vectors::new(own.to_vec(), width)).collect())
    }
}
