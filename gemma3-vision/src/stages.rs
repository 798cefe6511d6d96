//! The places of a forward pass that can be looked at, or at which it can be stopped.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use gemma3_core::CancelHandle;
use gemma3_core::ops::image::ImageMachine;
use gemma3_core::ops::pending::Pending;

use crate::error::VisionError;

/// A place between two steps. Who looks sees one image after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Patch plus position embeddings, \[patches, hidden\].
    Embeddings,
    /// The residual stream after an encoder layer, \[patches, hidden\].
    Layer(usize),
    /// What the encoder gives, \[patches, hidden\].
    PostLayernorm,
    /// After average pooling, \[soft tokens, hidden\].
    Pooled,
    /// After the norm of the projector, \[soft tokens, hidden\]: as products read it, so in bf16 or f16 where
    /// [`Precision::Fast`](gemma3_core::ops::Precision::Fast) has tensor cores.
    Normed,
    /// The soft tokens, \[soft tokens, hidden of the decoder\].
    Output,
}

/// Called at every [`Stage`] with shape and values, row-major; `Break` ends the forward pass there.
pub type Observer<'a> = &'a mut (dyn FnMut(Stage, &[usize; 2], &[f32]) -> ControlFlow<()> + Send);

/// Layers that are launched ahead of the one that the device is in, where someone may cancel.
const LAYERS_AHEAD: usize = 2;

/// Who looks at a pass, and who may stop it.
pub(crate) struct Watch<'a> {
    observer: Option<Observer<'a>>,
    cancel: Option<CancelHandle>,
    /// Of layers that the device may not have finished.
    marks: VecDeque<Pending<()>>,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(observer: Option<Observer<'a>>, cancel: Option<&CancelHandle>) -> Self {
        Self { observer, cancel: cancel.cloned(), marks: VecDeque::new() }
    }

    /// Whether what happens between has to be shown.
    pub(crate) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Shows a stage, and stops there if the observer says so.
    pub(crate) fn show<M: ImageMachine>(
        &mut self,
        m: &M,
        stage: Stage,
        x: &M::Features,
    ) -> Result<(), VisionError> {
        let Some(observe) = &mut self.observer else { return Ok(()) };
        let values = m.look_at_features(x)?.wait()?;
        match observe(stage, &m.features_shape(x), &values) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(VisionError::Cancelled),
        }
    }

    /// Before a layer: stops if that was asked for. What has been launched can't be taken back, so that the device is not
    /// given more than some layers at a time.
    pub(crate) fn before_layer(&mut self) -> Result<(), VisionError> {
        let Some(cancel) = &self.cancel else { return Ok(()) };
        if self.marks.len() == LAYERS_AHEAD
            && let Some(mark) = self.marks.pop_front()
        {
            mark.wait()?;
        }
        match cancel.is_cancelled() {
            true => Err(VisionError::Cancelled),
            false => Ok(()),
        }
    }

    /// After a layer.
    pub(crate) fn after_layer<M: ImageMachine>(&mut self, m: &M) {
        if self.cancel.is_some() {
            self.marks.push_back(m.mark());
        }
    }
}
