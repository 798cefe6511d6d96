//! Our own product of large matrices, the one that prompts and images are made of.

use gemma3::Device;
use gemma3::core::checkpoint::{Checkpoint, RandomTensor, TensorFormat};
use gemma3::core::config::ModelConfig;
use gemma3::core::device::is_cpu;
use gemma3::core::ops::image::{ImageMachine, Numbers};
use gemma3::core::ops::machine::Norm;
use gemma3::core::ops::{OnMachine, on_machine};

use crate::arguments::Arguments;
use crate::limits::{self, Gemm};
use crate::{Failure, models};

/// What the device calls itself.
pub fn card(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

/// Its rate with random numbers, on which a device spends more power, and so clock, than on zeros; `None` where there is
/// no such product.
pub fn own(device: &Device, arguments: &Arguments) -> Result<Option<Gemm>, Failure> {
    if is_cpu(device) {
        return Ok(None);
    }
    on_machine(device, arguments.precision(), false, Own(arguments)).map(Some)
}

struct Own<'a>(&'a Arguments);

impl OnMachine for Own<'_> {
    type Output = Result<Gemm, Failure>;

    fn on<M: ImageMachine>(self, machine: M) -> Self::Output {
        let Self(arguments) = self;
        let [rows, outputs, inputs] = limits::product(arguments);
        let deviation = (inputs as f32).powf(-0.5);
        let (name, shape, format) = ("weight".to_owned(), vec![outputs, inputs], TensorFormat::BF16);
        let tensor = RandomTensor { name, shape, format, mean: 0.0, deviation };
        let config = ModelConfig::from_text(models::tiny());
        let checkpoint = Checkpoint::random_with(config, format, [tensor], 1)?;
        let weight = machine.image_matrix(checkpoint.raw("weight")?)?;

        let value = |i: usize| (i.wrapping_mul(2_654_435_761) % 1999) as f32 / 1000.0 - 1.0;
        let values: Vec<f32> = (0..rows * inputs).map(value).collect();
        // A norm is how rows get into the form that products read.
        let norm = Norm { scale: machine.vector(vec![1.0; inputs])?, eps: 1e-6 };
        let x = machine.rms_norm(&machine.features(values, inputs)?, &norm)?;
        // Rows of f16 are made of others by a launch of its own.
        let numbers = match machine.operands() {
            TensorFormat::F16 => Numbers::Floats,
            _ => Numbers::Operands,
        };
        let seconds = limits::best_of_rounds(|times| {
            for _ in 0..times {
                machine.linear(&x, &weight, None, numbers)?;
            }
            Ok(machine.mark().wait()?)
        })?;
        Ok(limits::gemm(arguments, seconds, machine.operands().name()))
    }
}
