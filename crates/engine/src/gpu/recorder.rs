//! Executes plans: pipelines, bind groups, the command encoder and its parameters.

use super::plan::{Binding, Dispatch, Plan, SUBMIT_COST, Source};
use super::pool::Pool;
use crate::op::BufferId;
use std::collections::HashMap;
use std::rc::Rc;

/// WebGPU's default `minUniformBufferOffsetAlignment`.
const PARAMS_STRIDE: usize = 256;
/// Bytes of the params of one dispatch: no kernel has more than 32 words.
const PARAMS_BYTES: usize = 128;
/// Dispatches of one submit at most: 128 KiB of params.
const MAX_DISPATCHES: usize = 512;
/// Bind groups kept; a step needs a few hundred.
const MAX_BIND_GROUPS: usize = 8192;
const MAX_BINDINGS: usize = 8;

/// A kernel's name and the constants of its variant.
type Variant = (&'static str, Vec<(&'static str, u32)>);

/// The device with everything that is recorded on it.
pub struct Recorder {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub pool: Pool<wgpu::Buffer>,
    max_buffer_words: usize,
    pipelines: HashMap<Variant, Rc<Pipeline>>,
    layouts: HashMap<Vec<bool>, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    bind_groups: HashMap<(Vec<bool>, [u32; MAX_BINDINGS]), wgpu::BindGroup>,
    params: wgpu::Buffer,
    params_words: Vec<u32>,
    unused: BufferId,
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    recording: u64,
    cost: u64,
}

struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    writes: Vec<bool>,
}

/// A copy that stands in for a binding whose buffer the same dispatch writes through another one.
struct StandIn {
    original: BufferId,
    original_word: usize,
    copy: BufferId,
    words: usize,
    copy_back: bool,
}

impl Recorder {
    pub fn new(device: wgpu::Device, queue: wgpu::Queue, max_buffer_words: usize) -> Self {
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: (PARAMS_STRIDE * MAX_DISPATCHES) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut recorder = Self {
            device,
            queue,
            pool: Pool::default(),
            max_buffer_words,
            pipelines: HashMap::new(),
            layouts: HashMap::new(),
            bind_groups: HashMap::new(),
            params,
            params_words: Vec::new(),
            unused: BufferId(0),
            encoder: None,
            pass: None,
            recording: 1,
            cost: 0,
        };
        recorder.unused = recorder.allocate(1);
        recorder
    }

    pub fn allocate(&mut self, words: usize) -> BufferId {
        let device = &self.device;
        self.pool.allocate(words, self.max_buffer_words, |words| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 4 * words as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        })
    }

    pub fn write(&mut self, id: BufferId, first_word: usize, words: &[u32]) {
        // The queue writes before the next submit begins: recorded work that uses the buffer goes first.
        if self.pool.is_used_in(id, self.recording) {
            self.submit();
        }
        self.queue.write_buffer(self.pool.buffer(id), 4 * first_word as u64, bytemuck::cast_slice(words));
    }

    /// Records a copy of the words into a new buffer that can be mapped, and submits.
    pub fn stage(&mut self, id: BufferId, first_word: usize, len: usize) -> (wgpu::Buffer, Option<wgpu::SubmissionIndex>) {
        let staging = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read"),
            size: 4 * len as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.encoder_outside_pass();
        self.pool.mark_used(id, self.recording);
        let source = self.pool.buffer(id);
        let encoder = self.encoder.as_mut().expect("the encoder was just made");
        encoder.copy_buffer_to_buffer(source, 4 * first_word as u64, &staging, 0, 4 * len as u64);
        let submission = self.submit();
        (staging, submission)
    }

    pub fn run(&mut self, plan: &Plan) {
        let scratch: Vec<BufferId> = plan.scratch.iter().map(|words| self.allocate(*words)).collect();
        for dispatch in &plan.dispatches {
            self.dispatch(dispatch, &scratch);
        }
        for id in scratch {
            self.pool.free(id);
        }
    }

    /// Hands the recorded work to the queue; `None` if there is none.
    pub fn submit(&mut self) -> Option<wgpu::SubmissionIndex> {
        self.pass = None;
        let encoder = self.encoder.take()?;
        if !self.params_words.is_empty() {
            self.queue.write_buffer(&self.params, 0, bytemuck::cast_slice(&self.params_words));
            self.params_words.clear();
        }
        self.recording += 1;
        self.cost = 0;
        Some(self.queue.submit([encoder.finish()]))
    }

    pub fn reset_peak(&mut self) {
        // Bind groups keep their buffers alive.
        self.bind_groups.clear();
        self.pool.reset_peak();
    }

    fn dispatch(&mut self, dispatch: &Dispatch, scratch: &[BufferId]) {
        let full = self.params_words.len() * 4 >= PARAMS_STRIDE * MAX_DISPATCHES;
        if full || (self.cost > 0 && self.cost + dispatch.cost > SUBMIT_COST) {
            self.submit();
        }
        self.cost += dispatch.cost;

        let pipeline = self.pipeline(dispatch);
        let mut bindings = dispatch.bindings.clone();
        for binding in &mut bindings {
            match binding.source {
                Source::Buffer(_) => {}
                Source::Scratch(index) => binding.source = Source::Buffer(scratch[index]),
                Source::Unused => binding.source = Source::Buffer(self.unused),
            }
        }
        let stand_ins = self.separate_aliases(&mut bindings, &pipeline.writes);
        if !stand_ins.is_empty() {
            self.encoder_outside_pass();
            for stand_in in &stand_ins {
                self.copy(stand_in, false);
            }
        }

        let group_key = self.bind_group(&bindings, &pipeline.writes);
        let offset = self.push_params(&bindings, &dispatch.params);
        self.encoder_in_pass();
        let pass = self.pass.as_mut().expect("the pass was just begun");
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_groups[&group_key], &[offset]);
        pass.dispatch_workgroups(dispatch.groups.0, dispatch.groups.1, 1);

        if !stand_ins.is_empty() {
            self.encoder_outside_pass();
            for stand_in in &stand_ins {
                if stand_in.copy_back {
                    self.copy(stand_in, true);
                }
                self.pool.free(stand_in.copy);
            }
        }
    }

    /// WebGPU forbids a buffer that a dispatch writes to be bound a second time, even elsewhere in the buffer. Such
    /// bindings get a copy, so that operations stay correct; the engine avoids them, because copies cost.
    fn separate_aliases(&mut self, bindings: &mut [Binding], writes: &[bool]) -> Vec<StandIn> {
        let mut stand_ins = Vec::new();
        for i in 0..bindings.len() {
            let id = buffer_of(&bindings[i]);
            let aliased = (0..bindings.len())
                .any(|j| j != i && writes[j] && buffer_of(&bindings[j]) == id && (!writes[i] || j < i));
            if !aliased {
                continue;
            }
            let (elements, words_together) = bindings[i].group;
            let first_group = bindings[i].offset / elements;
            let first = (first_group * words_together) as usize;
            let words = (bindings[i].words as usize).min(self.pool.words(id) - first);
            let copy = self.allocate(words);
            bindings[i].source = Source::Buffer(copy);
            bindings[i].offset -= first_group * elements;
            stand_ins.push(StandIn { original: id, original_word: first, copy, words, copy_back: writes[i] });
        }
        stand_ins
    }

    fn copy(&mut self, stand_in: &StandIn, back: bool) {
        let StandIn { original, original_word, copy, words, .. } = *stand_in;
        self.pool.mark_used(original, self.recording);
        self.pool.mark_used(copy, self.recording);
        let (original, copy) = (self.pool.buffer(original), self.pool.buffer(copy));
        let (at, len) = (4 * original_word as u64, 4 * words as u64);
        let encoder = self.encoder.as_mut().expect("copies are recorded outside a pass");
        if back {
            encoder.copy_buffer_to_buffer(copy, 0, original, at, len);
        } else {
            encoder.copy_buffer_to_buffer(original, at, copy, 0, len);
        }
    }

    /// Appends offsets and params; returns their byte offset.
    fn push_params(&mut self, bindings: &[Binding], params: &[u32]) -> u32 {
        let start = self.params_words.len();
        self.params_words.extend(bindings.iter().map(|binding| binding.offset));
        self.params_words.extend_from_slice(params);
        debug_assert!(self.params_words.len() - start <= PARAMS_BYTES / 4);
        self.params_words.resize(start + PARAMS_STRIDE / 4, 0);
        4 * start as u32
    }

    fn encoder_outside_pass(&mut self) {
        self.pass = None;
        if self.encoder.is_none() {
            self.encoder = Some(self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default()));
        }
    }

    fn encoder_in_pass(&mut self) {
        if self.pass.is_none() {
            self.encoder_outside_pass();
            let encoder = self.encoder.as_mut().expect("the encoder was just made");
            self.pass = Some(encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime());
        }
    }

    fn bind_group(&mut self, bindings: &[Binding], writes: &[bool]) -> (Vec<bool>, [u32; MAX_BINDINGS]) {
        let mut ids = [u32::MAX; MAX_BINDINGS];
        for (id, binding) in ids.iter_mut().zip(bindings) {
            let buffer = buffer_of(binding);
            *id = buffer.0;
            self.pool.mark_used(buffer, self.recording);
        }
        let key = (writes.to_vec(), ids);
        if !self.bind_groups.contains_key(&key) {
            if self.bind_groups.len() >= MAX_BIND_GROUPS {
                self.bind_groups.clear();
            }
            let params = wgpu::BufferBinding { buffer: &self.params, offset: 0, size: wgpu::BufferSize::new(PARAMS_BYTES as u64) };
            let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(params) }];
            for (i, binding) in bindings.iter().enumerate() {
                let resource = self.pool.buffer(buffer_of(binding)).as_entire_binding();
                entries.push(wgpu::BindGroupEntry { binding: i as u32 + 1, resource });
            }
            let layout = &self.layouts[writes].0;
            let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
            self.bind_groups.insert(key.clone(), group);
        }
        key
    }

    fn pipeline(&mut self, dispatch: &Dispatch) -> Rc<Pipeline> {
        let key = (dispatch.kernel, dispatch.constants.clone());
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Rc::clone(pipeline);
        }
        let kernel = barycenter_shaders::kernel(dispatch.kernel).expect("every plan names a listed kernel");
        let writes = kernel.writes();
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(dispatch.kernel),
            source: wgpu::ShaderSource::Wgsl(kernel.source_with(&dispatch.constants).into()),
        });
        let device = &self.device;
        let (_, layout) = self.layouts.entry(writes.clone()).or_insert_with(|| layouts(device, &writes));
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(dispatch.kernel),
            layout: Some(layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Every kernel writes workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        let pipeline = Rc::new(Pipeline { pipeline, writes });
        self.pipelines.insert(key, Rc::clone(&pipeline));
        pipeline
    }
}

fn buffer_of(binding: &Binding) -> BufferId {
    match binding.source {
        Source::Buffer(id) => id,
        Source::Scratch(_) | Source::Unused => unreachable!("replaced by buffers before anything is recorded"),
    }
}

/// Layouts of a kernel with params as binding 0 and storage buffers of that access behind.
fn layouts(device: &wgpu::Device, writes: &[bool]) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
    let entry = |binding: usize, ty: wgpu::BufferBindingType, dynamic: bool| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform, true)];
    for (i, write) in writes.iter().enumerate() {
        entries.push(entry(i + 1, wgpu::BufferBindingType::Storage { read_only: !write }, false));
    }
    let group = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
    let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: None,
        bind_group_layouts: &[Some(&group)],
        immediate_size: 0,
    });
    (group, pipeline)
}
