//! An application that computes with burn on its own account and lets gemma3 speak on the same device.
//!
//! `cargo run --manifest-path tests/host-app/Cargo.toml -- MODEL PROMPT`

use std::error::Error;
use std::io::Write;

use burn::tensor::{Device, DeviceKind, Tensor};
use gemma3::{Gemma3, GenerateOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: host-app MODEL PROMPT".into());
    };
    // The host's own device and tensors ...
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let weather = Tensor::<1>::from_floats([0.2, 0.7, 0.1], &device);
    println!("rain: {}", weather.sum().into_scalar::<f32>());

    // ... and the model on the same one.
    let gemma = Gemma3::load(model, &device)?;
    let mut session = gemma.session()?;
    session.append(&prompt)?;
    let options = GenerateOptions { max_new_tokens: Some(64), ..gemma.generate_options() };
    for piece in session.stream(&options)? {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
