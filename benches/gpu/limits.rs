//! What the device can do: copy, which limits everything that reads memory, and multiply large matrices.

use std::time::Instant;

use burn::tensor::{DType, Distribution, FloatDType, Tensor, TensorCreationOptions};
use gemma3::{Device, Precision};
use serde::{Deserialize, Serialize};

use crate::arguments::{Arguments, Part};
use crate::{Failure, child};

/// The limits of a device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Limits {
    /// What the device calls itself.
    pub card: Option<String>,
    /// Bytes read and written in 1e9 a second, by `y = 1.5 x` in burn.
    pub copy_gb_s: f64,
    /// 1e12 flops a second, by our own product; `None` where there is none.
    pub own_gemm: Option<Gemm>,
    /// The same by burn's product, if it was asked for.
    pub burn_gemm: Option<Gemm>,
}

/// The rate of a large product.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gemm {
    pub tflop_s: f64,
    /// What is multiplied: `bf16` or `f16`, on tensor cores, or `f32`.
    pub numbers: String,
}

/// Numbers of f32 in the array that is copied: 512 MiB, beyond any cache.
const COPIED: usize = 1 << 27;
/// Rows, outputs and inputs of the product.
const PRODUCT: [usize; 3] = [4096, 8192, 8192];

impl Limits {
    /// Measures in processes of their own.
    pub fn measure(arguments: &Arguments) -> Result<Self, Failure> {
        let mut limits: Self = child::run_once(Part::Limits, "")?;
        if arguments.burn_gemm {
            match child::run_once(Part::BurnGemm, "") {
                Ok(gemm) => limits.burn_gemm = Some(gemm),
                Err(error) => println!("burn's product: {error}"),
            }
        }
        Ok(limits)
    }

    /// The faster product.
    pub fn gemm(&self) -> Option<&Gemm> {
        let products = self.own_gemm.iter().chain(&self.burn_gemm);
        products.max_by(|a, b| a.tflop_s.total_cmp(&b.tflop_s))
    }

    pub fn gemm_tflop_s(&self) -> Option<f64> {
        self.gemm().map(|gemm| gemm.tflop_s)
    }
}

/// [`Part::Limits`].
pub fn find(arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let numbers = if arguments.tiny { COPIED >> 6 } else { COPIED };
    let copy_gb_s = (8 * numbers) as f64 / 1e9 / copy_s(&device, numbers)?;
    #[allow(unused_mut, reason = "only GPUs add to it")]
    let mut limits = Limits { card: None, copy_gb_s, own_gemm: None, burn_gemm: None };
    #[cfg(any(
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "webgpu",
        feature = "cuda",
        feature = "rocm"
    ))]
    {
        limits.card = crate::gemm::card(&device);
        limits.own_gemm = crate::gemm::own(&device, arguments)?;
    }
    child::answer(&limits)
}

/// [`Part::BurnGemm`]: in bf16 where the device has it and nothing was to be exact, else in f32. burn's search for a
/// kernel leaves more behind than copies do, and not every kernel that it tries ends well on every device.
pub fn find_burn_gemm(arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let fast = arguments.precision() == Precision::Fast;
    let (dtype, numbers) = match fast && device.supports_dtype(FloatDType::BF16) {
        true => (DType::BF16, "bf16"),
        false => (DType::F32, "f32"),
    };
    let [rows, outputs, inputs] = product(arguments);
    let random = |shape: [usize; 2]| {
        let options = TensorCreationOptions::new(device.clone()).with_dtype(dtype);
        Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), options)
    };
    let (x, weight) = (random([rows, inputs]), random([outputs, inputs]).transpose());
    let seconds = best_of_rounds(|times| {
        for _ in 0..times {
            let _ = x.clone().matmul(weight.clone());
        }
        Ok(device.sync()?)
    })?;
    child::answer(&gemm(arguments, seconds, numbers))
}

/// Rows, outputs and inputs.
pub fn product(arguments: &Arguments) -> [usize; 3] {
    if arguments.tiny { PRODUCT.map(|size| size / 16) } else { PRODUCT }
}

/// The rate of a product that takes so many seconds.
pub fn gemm(arguments: &Arguments, seconds: f64, numbers: &str) -> Gemm {
    let flops = 2.0 * product(arguments).iter().map(|size| *size as f64).product::<f64>();
    Gemm { tflop_s: flops / seconds / 1e12, numbers: numbers.to_owned() }
}

fn copy_s(device: &Device, numbers: usize) -> Result<f64, Failure> {
    let x = Tensor::<1>::ones([numbers], device);
    best_of_rounds(|times| {
        for _ in 0..times {
            let _ = x.clone().mul_scalar(1.5);
        }
        Ok(device.sync()?)
    })
}

/// Seconds of one in the best of several rounds of many: a limit is the most that has been seen. `run` does it a
/// number of times and waits.
pub fn best_of_rounds(mut run: impl FnMut(usize) -> Result<(), Failure>) -> Result<f64, Failure> {
    const ROUNDS: usize = 10;
    const ROUND_S: f64 = 0.05;
    const LONGEST_S: f64 = 5.0;
    let mut timed = |times| {
        let begun = Instant::now();
        run(times).map(|()| begun.elapsed().as_secs_f64() / times as f64)
    };
    timed(1)?; // Compiles and allocates.
    let mut best = timed(1)?;
    let times = (ROUND_S / best).ceil().clamp(1.0, 100.0) as usize;
    let begun = Instant::now();
    for _ in 0..ROUNDS {
        best = timed(times)?.min(best);
        if begun.elapsed().as_secs_f64() > LONGEST_S {
            break;
        }
    }
    Ok(best)
}
