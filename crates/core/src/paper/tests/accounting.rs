use crate::paper::accounting::{GIB, Stack};
use crate::paper::profile::{MINI_BATCH, profiled_activations_gib, workspace_gib};
use crate::paper::{Model, Technique, published};

#[test]
fn side_networks_have_the_parameters_of_the_papers_weights() {
    let side = Model::ALL.map(|m| m.architecture().side_parameters());
    assert_eq!(side, [5_097_216, 9_097_472, 17_718_784]);
}

#[test]
fn backbones_and_baselines_have_the_published_parameters() {
    // the checkpoints' own counts
    assert_eq!(Model::ALL.map(|m| m.architecture().backbone_parameters()), [222_903_552, 406_291_456, 737_668_096]);
    let large = Model::T5Large.architecture();
    // Table 1: "12M (1.70 %)" and "9M (1.26 %)"
    assert_eq!(large.trainable_parameters(Technique::Adapters), 12_687_360);
    assert_eq!(large.trainable_parameters(Technique::Lora), 9_437_184);
}

#[test]
fn forward_flops_are_those_of_figure_3() {
    let tflop = |m: Model| m.architecture().flops(Technique::Full, false).forward * MINI_BATCH / 1e12;
    // BART-Large has T5-Large's widths and half its layers
    for (model, expected) in Model::ALL.into_iter().zip([0.4188, 0.7402, 1.4804]) {
        assert!((tflop(model) - expected).abs() < 0.000_05, "{}: {}", model.name(), tflop(model));
        let (forward, backward) = published::figure_3(model, Technique::Full).expect("Fig. 3 has it");
        // digitised to about 0.5 % of an axis of 5 TFLOP
        assert!((tflop(model) - forward).abs() < 0.003, "{}", model.name());
        assert!((2.0 * tflop(model) - backward).abs() < 0.003, "{}", model.name());
    }
}

#[test]
fn the_cache_leaves_only_the_side_networks_flops() {
    for model in Model::ALL {
        let architecture = model.architecture();
        let (fill, cached) = (architecture.flops(Technique::ParallelAdapters, false), architecture.flops(Technique::ParallelAdapters, true));
        let backbone = architecture.flops(Technique::Full, false).forward;
        assert!((fill.forward - cached.forward - backbone).abs() < 1.0);
        assert_eq!(fill.backward, cached.backward);
        assert!(cached.forward < 0.05 * backbone, "{}", model.name());
    }
}

#[test]
fn counted_activations_of_t5_large_are_within_a_seventh_of_table_1() {
    let architecture = Model::T5Large.architecture();
    for technique in [Technique::Full, Technique::Adapters, Technique::Lora] {
        let sample = architecture.saved_floats(technique, Stack::Encoder) + architecture.saved_floats(technique, Stack::Decoder);
        let counted = MINI_BATCH * architecture.layers as f64 * sample * 4.0 / GIB;
        let printed = published::table_1_activations_gib(technique).expect("Table 1 has it");
        // always below: the table also has what lives only while a layer runs
        let ratio = counted / printed;
        assert!((6.0 / 7.0..1.0).contains(&ratio), "{}: {counted:.2} of {printed} GiB", technique.name());
    }
}

#[test]
fn most_of_the_profiled_activations_are_explained_by_the_count() {
    for model in Model::ALL {
        for technique in Technique::ALL {
            let share = workspace_gib(model, technique) * MINI_BATCH / profiled_activations_gib(model, technique);
            assert!((0.0..0.4).contains(&share), "{} {}: {share:.2}", model.name(), technique.name());
        }
    }
}
