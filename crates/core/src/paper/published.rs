//! The paper's own numbers. Tables as printed; figures digitised to about ±0.5 % of the axis.

use super::{Model, System, Technique, Task};

/// Rows of Table 2, in its order.
pub const TABLE_2_ROWS: [(Technique, System); 10] = [
    (Technique::Full, System::Standalone),
    (Technique::Full, System::EcoFl),
    (Technique::Full, System::Eddl),
    (Technique::Adapters, System::Standalone),
    (Technique::Adapters, System::EcoFl),
    (Technique::Adapters, System::Eddl),
    (Technique::Lora, System::Standalone),
    (Technique::Lora, System::EcoFl),
    (Technique::Lora, System::Eddl),
    (Technique::ParallelAdapters, System::Pac),
];

/// Devices of Table 2: not stated, four by its throughputs.
pub const TABLE_2_DEVICES: usize = 4;

/// Hours of Table 2. `None`: out of memory.
pub fn table_2(technique: Technique, system: System, model: Model, task: Task) -> Option<f64> {
    let hours = match (technique, system, model) {
        (Technique::Full, System::EcoFl, Model::T5Base) => [0.45, 0.71, 2.74, 4.32],
        (Technique::Full, System::EcoFl, Model::BartLarge) => [2.41, 3.78, 14.56, 22.98],
        (Technique::Adapters, System::Standalone, Model::T5Base) => [1.21, 1.9, 7.29, 11.51],
        (Technique::Adapters, System::EcoFl, Model::T5Base) => [0.39, 0.61, 2.35, 3.71],
        (Technique::Adapters, System::EcoFl, Model::BartLarge) => [0.54, 0.85, 3.27, 5.16],
        (Technique::Adapters, System::EcoFl, Model::T5Large) => [2.75, 4.31, 16.59, 26.19],
        (Technique::Adapters, System::Eddl, Model::T5Base) => [0.34, 0.53, 2.06, 3.25],
        (Technique::Lora, System::Standalone, Model::T5Base) => [1.21, 1.89, 7.28, 11.49],
        (Technique::Lora, System::EcoFl, Model::T5Base) => [0.41, 0.64, 2.45, 3.87],
        (Technique::Lora, System::EcoFl, Model::BartLarge) => [0.55, 0.87, 3.33, 5.26],
        (Technique::Lora, System::EcoFl, Model::T5Large) => [2.73, 4.28, 16.48, 26.02],
        (Technique::Lora, System::Eddl, Model::T5Base) => [0.31, 0.48, 1.86, 2.94],
        (Technique::ParallelAdapters, System::Pac, Model::T5Base) => [0.14, 0.22, 1.34, 2.12],
        (Technique::ParallelAdapters, System::Pac, Model::BartLarge) => [0.29, 0.45, 2.69, 4.25],
        (Technique::ParallelAdapters, System::Pac, Model::T5Large) => [0.69, 1.09, 8.88, 14.02],
        _ => return None,
    };
    Some(match task {
        Task::Mrpc => hours[0],
        Task::StsB => hours[1],
        Task::Sst2 => hours[2],
        Task::Qnli => hours[3],
    })
}

/// Numbers of devices in Figs. 9 and 10.
pub const DEVICE_COUNTS: [usize; 4] = [2, 4, 6, 8];

/// A cell of Fig. 9: samples per second, and peak weights per device in GiB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure9 {
    /// Fig. 9a. `None`: out of memory.
    pub throughput: Option<f64>,
    /// Fig. 9b, shown also where it does not fit.
    pub weights_gib: f64,
}

/// Fig. 9, all with parallel adapters and without cache. `index` into [`DEVICE_COUNTS`].
pub fn figure_9(model: Model, system: System, index: usize) -> Figure9 {
    let (throughput, weights) = match (model, system) {
        (Model::T5Base, System::EcoFl) => ([4.51, 8.65, 11.60, 12.18], [0.595, 0.344, 0.260, 0.218]),
        (Model::T5Base, _) => ([6.45, 12.06, 17.31, 22.50], [0.849; 4]),
        (Model::BartLarge, System::EcoFl) => ([3.63, 6.60, 7.12, 7.25], [0.773, 0.580, 0.452, 0.388]),
        (Model::BartLarge, System::Pac) => ([3.63, 6.84, 10.08, 13.31], [0.773; 4]),
        (Model::BartLarge, _) => ([0.0; 4], [1.546; 4]),
        (Model::T5Large, System::EcoFl) => ([0.0, 2.22, 2.30, 2.28], [1.634, 0.878, 0.627, 0.501]),
        (Model::T5Large, System::Pac) => ([0.0, 2.53, 4.38, 5.67], [1.634, 1.130, 1.130, 1.130]),
        (Model::T5Large, _) => ([0.0; 4], [2.812; 4]),
    };
    Figure9 { throughput: Some(throughput[index]).filter(|t| *t > 0.0), weights_gib: weights[index] }
}

/// Fig. 10: devices per stage. T5-Large on two is drawn as `[1-1]` and shown out of memory in Fig. 9.
pub fn figure_10(model: Model, index: usize) -> &'static [usize] {
    const BASE: [&[usize]; 4] = [&[2], &[4], &[6], &[8]];
    const BART: [&[usize]; 4] = [&[1, 1], &[2, 2], &[3, 3], &[4, 4]];
    const LARGE: [&[usize]; 4] = [&[1, 1], &[2, 1, 1], &[2, 2, 2], &[3, 3, 2]];
    match model {
        Model::T5Base => BASE[index],
        Model::BartLarge => BART[index],
        Model::T5Large => LARGE[index],
    }
}

/// Numbers of epochs in Fig. 11.
pub const EPOCH_COUNTS: [u32; 6] = [1, 2, 4, 6, 8, 10];

/// Fig. 11: hours of MRPC without and with the cache. `index` into [`EPOCH_COUNTS`].
pub fn figure_11(model: Model, index: usize) -> (f64, f64) {
    let (without, with) = match model {
        Model::T5Base => ([0.074, 0.148, 0.296, 0.445, 0.593, 0.741], [0.074, 0.106, 0.170, 0.234, 0.298, 0.362]),
        Model::BartLarge => ([0.149, 0.297, 0.594, 0.891, 1.188, 1.485], [0.149, 0.219, 0.359, 0.499, 0.639, 0.779]),
        Model::T5Large => ([0.490, 0.981, 1.962, 2.942, 3.923, 4.904], [0.490, 0.591, 0.792, 0.993, 1.194, 1.395]),
    };
    (without[index], with[index])
}

/// Fig. 3, TFLOP of 16 samples: forward, backward. Inference has the forward of full fine-tuning.
pub fn figure_3(model: Model, technique: Technique) -> Option<(f64, f64)> {
    Some(match (model, technique) {
        (Model::T5Base, Technique::Full) => (0.418, 0.837),
        (Model::T5Base, Technique::Adapters) => (0.467, 0.386),
        (Model::T5Base, Technique::Lora) => (0.496, 0.396),
        (Model::BartLarge, Technique::Full) => (0.740, 1.481),
        (Model::BartLarge, Technique::Adapters) => (0.835, 0.665),
        (Model::BartLarge, Technique::Lora) => (0.869, 0.692),
        (Model::T5Large, Technique::Full) => (1.480, 2.960),
        (Model::T5Large, Technique::Adapters) => (1.702, 1.357),
        (Model::T5Large, Technique::Lora) => (1.743, 1.378),
        (_, Technique::ParallelAdapters) => return None,
    })
}

/// Table 1, activations of T5-Large with 16 samples, GiB.
pub fn table_1_activations_gib(technique: Technique) -> Option<f64> {
    match technique {
        Technique::Full => Some(5.33),
        Technique::Adapters => Some(4.04),
        Technique::Lora => Some(4.31),
        Technique::ParallelAdapters => None,
    }
}
