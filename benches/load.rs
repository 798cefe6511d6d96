//! From a file to the first token, with the file in the system's cache.

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use gemma3::{Gemma3, GenerateOptions};

fn load(criterion: &mut Criterion) {
    let Some(path) = common::real_model() else {
        println!("skipped: the real model is not cached");
        return;
    };
    let device = common::device();
    let mut group = criterion.benchmark_group("load gemma-3-270m");
    group.sample_size(10);
    group.bench_function("to the first token", |bencher| {
        bencher.iter(|| {
            let gemma = Gemma3::load(&path, &device).expect("the model");
            let options = GenerateOptions { max_new_tokens: Some(1), ..GenerateOptions::greedy() };
            gemma.generate("The", &options).expect("a token")
        });
    });
    group.finish();
}

criterion_group!(benches, load);
criterion_main!(benches);
