//! Keys and values in a GPU's memory, where our kernels write and read them.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use cubecl::bytes::Bytes;
use cubecl::client::Client;
use cubecl::server::Handle;

use super::CacheDtype;
use crate::device::{DeviceFailed, read};
use crate::ops::Visibility;
use crate::ops::cube::attention::{
    CacheFormat, CacheLayout, PrefillAttention, PrefillBuffers, PrefillPath, prefill_attention,
    visible_ranges,
};
use crate::ops::cube::copy::{Rectangle, copy, copy_rectangle};
use crate::ops::cube::gemm::{RowFormat, Rows};
use crate::ops::cube::stream::{Stream, waiting};

/// Keys and values of one layer of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct LayerBuffers {
    /// As `layout` says.
    pub(crate) keys: Handle,
    /// As `layout` says.
    pub(crate) values: Handle,
    pub(crate) layout: CacheLayout,
}

/// Keys and values of all layers. Clones share them until one writes.
#[derive(Debug, Clone)]
pub(crate) struct DeviceCache {
    stream: Stream,
    device: Device,
    layers: Arc<Vec<LayerBuffers>>,
}

impl CacheDtype {
    pub(crate) fn on_device(self) -> CacheFormat {
        match self {
            Self::F32 => CacheFormat::F32,
            Self::BF16 => CacheFormat::BF16,
            Self::F16 => CacheFormat::F16,
        }
    }
}

impl DeviceCache {
    /// Allocates; nothing reads a slot before it is written.
    pub(super) fn new(
        stream: &Stream,
        device: &Device,
        kv_heads: usize,
        head_dim: usize,
        slots: impl Iterator<Item = usize>,
        dtype: CacheDtype,
    ) -> Self {
        let layers = slots.map(|slots| {
            let layout = CacheLayout { sequences: 1, kv_heads, slots, head_dim, format: dtype.on_device() };
            let empty = || stream.client().empty(layout.bytes());
            LayerBuffers { keys: empty(), values: empty(), layout }
        });
        Self { stream: stream.clone(), device: device.clone(), layers: Arc::new(layers.collect()) }
    }

    /// The layers, of which nobody else may read afterwards what is written now: where a fork shares them they
    /// are copied first.
    pub(crate) fn own(&mut self) -> &Arc<Vec<LayerBuffers>> {
        if Arc::strong_count(&self.layers) > 1 {
            let client = self.stream.client();
            let layers = self.layers.iter().map(|layer| LayerBuffers {
                keys: duplicate(client, &layer.keys),
                values: duplicate(client, &layer.values),
                layout: layer.layout,
            });
            self.layers = Arc::new(layers.collect());
        }
        &self.layers
    }

    /// The caches of several sequences side by side, to be stepped together. `None` if their layers differ in
    /// size or dtype.
    pub(crate) fn gather(caches: &mut [&mut Self]) -> Option<Self> {
        let sequences = caches.len();
        let first = caches.first()?;
        let (stream, device, like) = (first.stream.clone(), first.device.clone(), first.layers.clone());
        let same =
            |cache: &&mut Self| cache.layers.iter().map(|l| l.layout).eq(like.iter().map(|l| l.layout));
        if !caches.iter().all(same) {
            return None;
        }
        let client = stream.client();
        let layers = like.iter().map(|layer| {
            let layout = CacheLayout { sequences, ..layer.layout };
            let empty = || client.empty(layout.bytes());
            LayerBuffers { keys: empty(), values: empty(), layout }
        });
        let layers: Vec<_> = layers.collect();
        for (sequence, cache) in caches.iter().enumerate() {
            for (all, own) in layers.iter().zip(cache.layers.iter()) {
                for (all, own) in [(&all.keys, &own.keys), (&all.values, &own.values)] {
                    let quads = own.size_in_used() as usize / 16;
                    let place = Rectangle { buffer: all, width: quads, row: sequence, column: 0 };
                    copy_rectangle(client, Rectangle { buffer: own, row: 0, ..place }, place, 1, quads);
                }
            }
        }
        Some(Self { stream, device, layers: Arc::new(layers) })
    }

    /// Copies a sequence of a gathered cache back to where it came from.
    pub(crate) fn take_back(&self, sequence: usize, cache: &mut Self) {
        let client = self.stream.client();
        for (all, own) in self.layers.iter().zip(cache.own().iter()) {
            for (all, own) in [(&all.keys, &own.keys), (&all.values, &own.values)] {
                let quads = own.size_in_used() as usize / 16;
                let place = Rectangle { buffer: all, width: quads, row: sequence, column: 0 };
                copy_rectangle(client, place, Rectangle { buffer: own, row: 0, ..place }, 1, quads);
            }
        }
    }

    /// Heads, slots, and width of a head, of each layer.
    pub(super) fn sizes(&self) -> impl Iterator<Item = [usize; 3]> {
        self.layers.iter().map(|LayerBuffers { layout, .. }| [layout.kv_heads, layout.slots, layout.head_dim])
    }

    /// A layer as traces see it.
    pub(super) fn layer(&mut self, index: usize) -> Option<DeviceLayer> {
        let (stream, device) = (self.stream.clone(), self.device.clone());
        let buffers = self.own().get(index)?.clone();
        Some(DeviceLayer { stream, device, buffers })
    }
}

/// Launches what forks and batches copy caches with over a few bytes, so that a device has compiled it: the kernels
/// don't depend on sizes.
pub(crate) fn compile_copies(stream: &Stream) {
    let client = stream.client();
    let from = stream.upload_words(&[0; 4]);
    let to = duplicate(client, &from);
    let place = |buffer| Rectangle { buffer, width: 1, row: 0, column: 0 };
    copy_rectangle(client, place(&from), place(&to), 1, 1);
}

fn duplicate(client: &Client, buffer: &Handle) -> Handle {
    let to = client.empty(buffer.size_in_used() as usize);
    copy(client, buffer, &to);
    to
}

/// One layer, for passes that trace: entries go through the host, which is slow and needs no kernel of its own.
#[derive(Debug)]
pub(crate) struct DeviceLayer {
    stream: Stream,
    device: Device,
    buffers: LayerBuffers,
}

impl DeviceLayer {
    /// Stores `keys` and `values` \[count, kv_heads * head_dim\] at positions `start..`.
    pub(super) fn write(&self, start: usize, keys: Tensor<2>, values: Tensor<2>) -> Result<(), DeviceFailed> {
        for (buffer, rows) in [(&self.buffers.keys, keys), (&self.buffers.values, values)] {
            let rows = read(rows)?;
            let CacheLayout { kv_heads, slots, head_dim, format, .. } = self.buffers.layout;
            for (index, row) in rows.chunks_exact(kv_heads * head_dim).enumerate() {
                for (head, entry) in row.chunks_exact(head_dim).enumerate() {
                    let bytes = encode(entry, format);
                    let slot = head * slots + (start + index) % slots;
                    let first = (slot * bytes.len()) as u64;
                    let after = buffer.size_in_used() - first - bytes.len() as u64;
                    let place = buffer.clone().offset_start(first).offset_end(after);
                    self.stream.client().write(&place, Bytes::from_elems(bytes));
                }
            }
        }
        Ok(())
    }

    /// Attention of the queries `q` \[tokens, heads * head_dim\], by the exact kernel.
    pub(super) fn attend(
        &self,
        q: Tensor<2>,
        heads: usize,
        visibility: &Visibility,
    ) -> Result<Tensor<2>, DeviceFailed> {
        let shape = q.dims();
        let client = self.stream.client();
        let visible = visible_ranges(visibility.queries(), visibility.window(), visibility.images());
        let queries = self.stream.upload_tensor(q)?;
        let out = Rows::empty(client, RowFormat::F32, shape[0], shape[1]);
        let buffers = PrefillBuffers {
            queries: &queries,
            keys: &self.buffers.keys,
            values: &self.buffers.values,
            visible: &self.stream.upload_words(&visible),
            out: &out,
        };
        let attention = PrefillAttention { cache: self.buffers.layout, heads };
        prefill_attention(client, attention, 0, shape[0], buffers, PrefillPath::Plain);
        self.stream.download_tensor(&out.handle, shape, &self.device)
    }

    /// What [`attend`](Self::attend) weighs the values with, \[heads, tokens, keys\]: computed on the host.
    pub(super) fn probabilities(
        &self,
        q: Tensor<2>,
        heads: usize,
        visibility: &Visibility,
    ) -> Result<Tensor<3>, DeviceFailed> {
        let CacheLayout { kv_heads, slots, head_dim, format, .. } = self.buffers.layout;
        let cached = decode(&waiting(|| self.stream.client().read_one(self.buffers.keys.clone()))?, format);
        let queries = read(q)?;
        let keys = visibility.keys();
        let tokens = visibility.queries();
        let mut all = Vec::with_capacity(heads * tokens.len() * keys.len());
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            for (row, position) in tokens.clone().enumerate() {
                let query = &queries[(row * heads + head) * head_dim..][..head_dim];
                let visible = visibility.of(position);
                let score = |key: usize| {
                    let entry = &cached[(kv_head * slots + key % slots) * head_dim..][..head_dim];
                    query.iter().zip(entry).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
                };
                let scores: Vec<f64> = visible.clone().map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                all.extend(keys.clone().map(|key| match visible.contains(&key) {
                    true => (weights[key - visible.start] / sum) as f32,
                    false => 0.0,
                }));
            }
        }
        Ok(Tensor::from_data(TensorData::new(all, [heads, tokens.len(), keys.len()]), &self.device))
    }
}

fn encode(values: &[f32], format: CacheFormat) -> Vec<u8> {
    match format {
        CacheFormat::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        CacheFormat::F16 => {
            let halves = values.iter().map(|x| half::f16::from_f32(x.clamp(-65504.0, 65504.0)));
            halves.flat_map(half::f16::to_le_bytes).collect()
        }
        CacheFormat::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn decode(bytes: &[u8], format: CacheFormat) -> Vec<f32> {
    match format {
        CacheFormat::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        CacheFormat::F16 => {
            bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        CacheFormat::BF16 => {
            bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
    }
}
