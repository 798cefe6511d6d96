//! What each kernel of a whole prompt takes, and of an image: where the time of passes of many rows goes.
//!
//! `cargo bench --bench gpu --features vulkan -- --device vulkan --profile --models 1b:bf16 --prompts 512,2048 --vision`

use std::time::Instant;

use gemma3::CacheOptions;
use gemma3::core::model::{Segment, SegmentInput};
use gemma3::core::ops::costs::{self, Launched};

use crate::arguments::{Arguments, Part};
use crate::costs::{Line, say, say_kernels, short_name};
use crate::models::RandomModel;
use crate::{Failure, child, measure, vision};

/// Prints everything.
pub fn print(arguments: &Arguments) -> Result<(), Failure> {
    let line = |Line(text)| println!("{text}");
    for model in arguments.models()? {
        child::run(Part::Profile, &model.to_string(), line)?;
    }
    if arguments.vision {
        child::run(Part::Profile, "", line)?;
    }
    Ok(())
}

/// What the processes do that [`print`] starts: the prompts of a model, or an image.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match arguments.subject.as_str() {
        "" => image(arguments),
        model => prompts(&model.parse()?, arguments),
    }
}

fn prompts(random: &RandomModel, arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let model = random.load(&device, arguments)?;
    for tokens in arguments.prompts().iter().copied().filter(|tokens| *tokens > 0) {
        let ids = measure::ids(&model, tokens, 0);
        let options = CacheOptions { capacity: Some(tokens), chunk: tokens, ..CacheOptions::default() };
        profile(&format!("{random}, a prompt of {tokens} tokens"), || {
            let mut cache = model.new_cache(&options)?;
            let input = SegmentInput::Ids(&ids);
            model.forward_last(&mut [Segment { input, cache: &mut cache }])?;
            Ok(())
        })?;
    }
    Ok(())
}

fn image(arguments: &Arguments) -> Result<(), Failure> {
    let device = crate::open(arguments)?;
    let model = vision::load(&device, arguments)?;
    let pixels = vision::pixels(model.config().image_size);
    profile("an image", || Ok(vision::read(&model.forward(pixels.clone(), 1)?)?))
}

/// Runs a pass until it has its kernels, then with a clock, then with one around every launch.
fn profile(name: &str, pass: impl Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    pass()?;
    pass()?;
    let begun = Instant::now();
    pass()?;
    let whole_us = 1e6 * begun.elapsed().as_secs_f64();
    let (passed, launches) = costs::in_order(&pass);
    passed?;
    let sum: f64 = launches.iter().map(|launch| launch.took_us).sum();
    let count = launches.len();
    say(format!("\n{name}: {whole_us:.0} us; {count} launches, which take {sum:.0} us by themselves:"))?;
    say_kernels(&launches)?;
    if let Some(layer) = layer(&launches) {
        say("  a layer's, in their order, on average and at most:".to_owned())?;
        for (kernel, mean, most) in layer {
            say(format!("    {kernel:<33} {mean:9.1} us {most:9.1}"))?;
        }
    }
    Ok(())
}

/// The shortest run of kernels that repeats itself in the middle of a pass, each with what it takes on average and at
/// most: products of different matrices are launches of the same kernel, and only their places tell them apart.
fn layer(launches: &[Launched]) -> Option<Vec<(String, f64, f64)>> {
    let middle = &launches[launches.len() / 4..launches.len() * 3 / 4];
    let repeats = |period: &usize| {
        let later = middle.iter().skip(*period);
        middle.iter().zip(later).all(|(launch, next)| launch.kernel == next.kernel)
    };
    let period = (1..=middle.len() / 3).find(repeats)?;
    let place = |first: usize| {
        let took = || middle.iter().skip(first).step_by(period).map(|launch| launch.took_us);
        let mean = took().sum::<f64>() / took().count() as f64;
        (short_name(middle[first].kernel), mean, took().fold(0.0, f64::max))
    };
    Some((0..period).map(place).collect())
}
