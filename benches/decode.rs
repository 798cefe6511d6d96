//! One decode step: a token in, logits out, at several depths of context.

mod common;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn decode(criterion: &mut Criterion) {
    let (name, checkpoint) = common::checkpoint();
    let model = common::load(&checkpoint);
    let mut group = criterion.benchmark_group(format!("decode {name}"));
    group.sample_size(20).throughput(Throughput::Elements(1));
    for depth in [128, 1024] {
        let session = common::session(&model, depth, 8);
        group.bench_function(format!("depth {depth}"), |bencher| {
            bencher.iter_batched_ref(
                || {
                    // A fork copies its cache at the first write: let that happen here.
                    let mut fork = session.clone();
                    fork.prefill(&[7]).expect("room");
                    fork
                },
                |session| session.prefill(&[7]).expect("room"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
