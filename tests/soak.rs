//! The soak of `benches/soak`, small: models in use for some turns hold what they held.

#[path = "../gemma3-core/tests/common/mod.rs"]
mod common;
#[path = "../benches/soak/curve.rs"]
#[allow(dead_code, reason = "the bench prints, too")]
mod curve;
#[path = "../benches/soak/habits.rs"]
mod habits;
#[path = "../benches/soak/process.rs"]
mod process;
#[path = "../benches/soak/soak.rs"]
mod soak;

use soak::Soak;

/// The only test of its program: others would come and go with threads and files of their own.
#[test]
fn turns_loads_and_unloads_leave_nothing_behind() {
    let (Some(model), Some(seeing_model)) = (common::golden("tiny-text"), common::golden("tiny-multimodal"))
    else {
        return;
    };
    let (_, device) = common::devices().swap_remove(0);
    let soak = Soak {
        model: &model,
        seeing_model: &seeing_model,
        device: &device,
        turns: 210,
        load_every: 21,
        context: 320,
    };
    let Some(outcome) = soak.run().expect("turns that go well") else {
        return common::skip("soak", "this system has no /proc/self");
    };
    outcome.curve.print();
    assert_eq!(outcome.faults(), [""; 0]);
}
