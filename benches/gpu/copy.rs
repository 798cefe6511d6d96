//! What the device copies: the limit of everything that reads memory.

use std::process::Command;
use std::time::Instant;

use burn::tensor::Tensor;
use gemma3::Device;

/// Numbers of f32 in the array: 512 MiB, beyond any cache.
const NUMBERS: usize = 1 << 27;
/// Passes that are timed together.
const PASSES: usize = 20;

/// The [`bandwidth`] that this program finds when it runs on its own: what the arrays leave in the allocator's pools
/// made the decodes after it 5% slower on an H100.
pub fn bandwidth_of_another_process(device: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?;
    let output = Command::new(program).args(["--device", device, "--copy-only"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.lines().next_back().and_then(|line| line.trim().parse().ok());
    number.ok_or_else(|| format!("no bandwidth: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Bytes read and written in 1e9 a second, the best of several rounds of `y = 1.5 x`.
pub fn bandwidth(device: &Device) -> f64 {
    let x = Tensor::<1>::ones([NUMBERS], device);
    let mut best = 0.0_f64;
    for _ in 0..5 {
        device.sync().expect("the device works");
        let begun = Instant::now();
        for _ in 0..PASSES {
            let _ = x.clone().mul_scalar(1.5);
        }
        device.sync().expect("the device works");
        best = best.max((PASSES * NUMBERS * 8) as f64 / begun.elapsed().as_secs_f64() / 1e9);
    }
    best
}
