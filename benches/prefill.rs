//! A prompt of 512 tokens in an empty context.

mod common;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn prefill(criterion: &mut Criterion) {
    let (name, checkpoint) = common::checkpoint();
    let model = common::load(&checkpoint);
    let ids = common::ids(512);
    let mut group = criterion.benchmark_group(format!("prefill {name}"));
    group.sample_size(10).throughput(Throughput::Elements(ids.len() as u64));
    group.bench_function("512 tokens", |bencher| {
        bencher.iter_batched_ref(
            || common::session(&model, 0, ids.len()),
            |session| session.prefill(&ids).expect("room"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, prefill);
criterion_main!(benches);
