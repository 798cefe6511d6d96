//! Text to ids and back, with the vocabulary of the real model.

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gemma3::core::checkpoint::Checkpoint;
use gemma3::tokenizer::{Bos, Tokenizer};

fn tokenizer(criterion: &mut Criterion) {
    let Some(path) = common::real_model() else {
        println!("skipped: the real model is not cached");
        return;
    };
    let checkpoint = Checkpoint::open(path).expect("the real model");
    let metadata = checkpoint.gguf().expect("GGUF metadata");
    let load = || {
        let vocabulary = gemma3::gguf_vocabulary(metadata).expect("metadata").expect("a vocabulary");
        Tokenizer::from_gguf(vocabulary).expect("a tokenizer")
    };
    let tokenizer = load();
    let sentence =
        "The lighthouse keeper climbed the 212 stairs every evening, naïve or not; then it rained. ";
    let text = sentence.repeat(1000);
    let ids = tokenizer.encode(&text, Bos::Add).expect("ids");

    let mut group = criterion.benchmark_group("tokenizer");
    group.sample_size(10);
    group.bench_function("load", |bencher| bencher.iter(load));
    group.throughput(Throughput::Bytes(text.len() as u64));
    group
        .bench_function("encode", |bencher| bencher.iter(|| tokenizer.encode(&text, Bos::Add).expect("ids")));
    group.bench_function("decode", |bencher| bencher.iter(|| tokenizer.decode(&ids, true).expect("text")));
    group.finish();
}

criterion_group!(benches, tokenizer);
criterion_main!(benches);
