//! Passes over consecutive tokens of sequences: prompts, batches of them, and whatever somebody looks into.

use std::sync::PoisonError;

use cubecl::bytes::Bytes;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::Cube;
use super::buffers::{Buffers, Widths};
use super::cache::Layers;
use super::compile::SHORT;
use super::device_rows::DeviceRows;
use super::group::Indexed;
use super::matrix::Matrix;
use super::sampled::fill_logits;
use super::step::{Step, StepBuffers};
use super::stream::{Chunk, Chunks, StepTokens, Stream, Tokens, expect};
use super::waiter::Answer;
use crate::ops::MachineError;
use crate::ops::cube::copy::{Rectangle, copy_into, copy_rectangle};
use crate::ops::cube::packed::rows as look_up;
use crate::ops::machine::{Input, Logits, Program, Wanted};
use crate::ops::vectors::Vectors;

/// The granularity of buffers' rows: passes of similar lengths share them.
const ROWS: usize = 64;

/// What a pass is made of.
#[derive(Default)]
struct Layout {
    ids: Vec<u32>,
    all: Vec<Chunk>,
    spans: Vec<(usize, Vectors)>,
    wanted: Vec<u32>,
    /// Whose logits those are.
    indices: Vec<usize>,
}

impl Cube {
    /// Appends tokens to sequences, one chunk of each, in as many passes as the device holds their rows in; gives the logits
    /// that are asked for, if any are.
    ///
    /// # Errors
    ///
    /// When the device fails, or can't hold the rows of one chunk, or of all where somebody looks into the pass.
    pub(super) fn compute_chunks<P: Program<Self>>(
        &self,
        entrants: &mut [Indexed<'_, '_>],
        program: &mut P,
        answers: &mut Vec<Answer>,
    ) -> Result<(), MachineError> {
        if entrants.is_empty() {
            return Ok(());
        }
        let most = match program.is_observed() {
            true => usize::MAX, // What is seen is of all of them.
            false => Widths::of(&program.shape()).most_rows(self.commands.limits()),
        };
        let mut rest = entrants;
        while !rest.is_empty() {
            let mut rows = 0;
            let fitting = rest.iter().take_while(|(_, entrant)| {
                rows += entrant.input.len();
                rows <= most
            });
            let (now, later) = rest.split_at_mut(fitting.count().max(1));
            self.compute_together(now, program, answers)?;
            rest = later;
        }
        Ok(())
    }

    /// One pass over chunks.
    fn compute_together<P: Program<Self>>(
        &self,
        entrants: &mut [Indexed<'_, '_>],
        program: &mut P,
        answers: &mut Vec<Answer>,
    ) -> Result<(), MachineError> {
        let Layout { ids, all, spans, wanted, indices } = self.lay_out(entrants, 0)?;
        let rows = ids.len();
        let ids = self.commands.upload_words(&ids);
        let vocab = program.shape().head.outputs();
        let tokens = Tokens::Chunks(Chunks { all, spans, wanted });
        let logits = self.pass(rows, &ids, tokens, program)?;
        if logits.is_empty() && !indices.is_empty() {
            return Err(MachineError::Bug { what: "a program ended without logits" });
        }
        let mut indices = indices.into_iter();
        for (logits, rows) in logits {
            let reading = self.commands.start_reading(&logits);
            let of: Vec<usize> = indices.by_ref().take(rows).collect();
            let fill = move |bytes: &[u8], outcomes: &mut [_]| {
                fill_logits(bytes, vocab, of.into_iter().enumerate(), outcomes)
            };
            answers.push(Answer { reading, fill: Box::new(fill) });
        }
        Ok(())
    }

    /// Whether a step and chunks can be one pass, which reads the weights once: one of few rows, so that it takes kernels
    /// that are compiled already.
    pub(super) fn is_one_pass(&self, step: &Step, layers: &Layers, chunks: &[Indexed<'_, '_>]) -> bool {
        let rows: usize = chunks.iter().map(|(_, entrant)| entrant.input.len()).sum();
        let no_logits =
            |(_, entrant): &Indexed<'_, '_>| matches!(entrant.wanted, Wanted::Logits(Logits::None));
        rows > 0
            && step.buffers.sequences + rows <= SHORT
            && chunks.iter().all(no_logits)
            && step.of_last(layers).is_some()
    }

    /// Appends tokens to sequences, one chunk of each, in the pass of a step that chooses tokens and has run before.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub(super) fn step_with_chunks<P: Program<Self>>(
        &self,
        step: &Step,
        layers: &Layers,
        entrants: &mut [Indexed<'_, '_>],
        program: &mut P,
    ) -> Result<(), MachineError> {
        let client = self.commands.client();
        let new = MachineError::Bug { what: "a step that has not run was to have a pass with others" };
        let (partial, sampling) = step.of_last(layers).ok_or(new)?;
        let StepBuffers { tokens, positions, logits, part, sequences, .. } = &step.buffers;
        let Layout { ids, all, spans, wanted, .. } = self.lay_out(entrants, *sequences)?;
        let rows = sequences + ids.len();
        let all_ids = client.empty(rows * size_of::<u32>());
        copy_into(client, tokens, &all_ids, 0);
        copy_into(client, &self.commands.upload_words(&ids), &all_ids, *sequences);
        let part = part.as_ref();
        let of_step = StepTokens { positions, layers, partial, counters: None, logits, part };
        let tokens = Tokens::Both(of_step, Chunks { all, spans, wanted });
        self.pass(rows, &all_ids, tokens, program)?;
        sampling.launch(client, &step.buffers);
        Ok(())
    }

    /// Runs a program over rows, in buffers that all such passes share; gives the logits that were asked for, and of how many
    /// rows.
    fn pass<P: Program<Self>>(
        &self,
        rows: usize,
        ids: &Handle,
        tokens: Tokens<'_>,
        program: &mut P,
    ) -> Result<Vec<(Handle, usize)>, MachineError> {
        let mut shared = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = program.shape();
        let (widths, limits) = (Widths::of(&shape), self.commands.limits());
        limits.expect_buffer(widths.bytes(rows), "to hold the rows of a pass; take a shorter chunk")?;
        // What is too small is given back first.
        let suits = |buffers: &Buffers| buffers.rows >= rows && buffers.widths == widths;
        let last = shared.take().filter(suits);
        let rounded = rows.next_multiple_of(ROWS).min(widths.most_rows(limits));
        let buffers = last.unwrap_or_else(|| Buffers::new(self, &shape, rounded));
        drop(shape);
        let mut stream = Stream::new(shared.insert(buffers), rows, ids, tokens);
        program.run(self, &mut stream)?;
        Ok(stream.logits)
    }

    /// Puts the tokens of sequences one after the other, in rows from `first` on.
    fn lay_out(&self, entrants: &mut [Indexed<'_, '_>], first: usize) -> Result<Layout, MachineError> {
        let mut pass = Layout::default();
        for (index, entrant) in entrants {
            let (first_row, position) = (first + pass.ids.len(), entrant.position);
            let ids = match entrant.input {
                Input::Ids(ids) => ids,
                Input::Placed { ids, spans } => {
                    let span_row = |start: usize| first_row.saturating_add(start);
                    let spans = spans.iter().map(|span| (span_row(span.start), span.vectors.clone()));
                    pass.spans.extend(spans);
                    ids
                }
                Input::Chosen => {
                    return Err(MachineError::Bug { what: "a chosen token entered a pass of others" });
                }
            };
            pass.ids.extend_from_slice(ids);
            let rows = first_row as u32..(first + pass.ids.len()) as u32;
            let wanted = match entrant.wanted {
                Wanted::Logits(Logits::None) => rows.end..rows.end,
                Wanted::Logits(Logits::Last) => rows.end.saturating_sub(1).max(rows.start)..rows.end,
                Wanted::Logits(Logits::All) => rows,
                Wanted::Token(_) => {
                    return Err(MachineError::Bug {
                        what: "a token was to be chosen where only logits are made",
                    });
                }
            };
            pass.indices.extend(wanted.clone().map(|_| *index));
            pass.wanted.extend(wanted);
            pass.all.push(Chunk {
                first_row,
                rows: ids.len(),
                queries: position..position + ids.len(),
                images: entrant.input.images(position),
                position: self.commands.upload_words(&[position as u32]),
                layers: entrant.cache.newest(),
                visible: Vec::with_capacity(2),
            });
        }
        expect(!pass.ids.is_empty(), "a pass of no tokens")?;
        Ok(pass)
    }

    /// The vectors that enter the first layer.
    pub(super) fn launch_embedding(
        &self,
        x: &mut Stream<'_>,
        table: &Matrix,
        scale: f32,
    ) -> Result<(), MachineError> {
        let hidden = x.buffers.widths.hidden;
        expect(table.takes(hidden), "the embeddings are not as wide as their stream")?;
        x.hold(Some(table), &[]);
        look_up(self.commands.client(), table.stacks(), x.ids, x.x(), x.rows, scale);
        if let Tokens::Chunks(chunks) | Tokens::Both(_, chunks) = &x.tokens {
            for (row, vectors) in &chunks.spans {
                let fits = vectors.width() == hidden && row.saturating_add(vectors.len()) <= x.rows;
                expect(fits, "vectors don't fit the tokens whose place they take")?;
                self.put_vectors(vectors, *row, x.x(), hidden)?;
            }
        }
        Ok(())
    }

    /// Writes vectors in the place of embeddings, from a row on.
    fn put_vectors(
        &self,
        vectors: &Vectors,
        row: usize,
        stream: &Handle,
        hidden: usize,
    ) -> Result<(), MachineError> {
        if vectors.is_empty() {
            return Ok(());
        }
        if let Some((rows, range)) = vectors.on::<DeviceRows>()
            && rows.is_on(&self.device)
        {
            let place = |buffer, row| Rectangle { buffer, width: hidden / 4, row, column: 0 };
            let (from, to) = (place(rows.handle(), range.start), place(stream, row));
            copy_rectangle(self.commands.client(), from, to, range.len(), hidden / 4);
            return Ok(());
        }
        let bytes = f32::as_bytes(&vectors.to_vec()?).to_vec();
        let start = (row * hidden * size_of::<f32>()) as u64;
        let after = stream.size_in_used() - start - bytes.len() as u64;
        let place = stream.clone().offset_start(start).offset_end(after);
        self.commands.client().write(&place, Bytes::from_bytes_vec(bytes));
        Ok(())
    }
}
