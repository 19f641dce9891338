//! The way back: the steps, by one kernel or a kernel each, then for each chunk of steps one product per weight.

use std::ops::Range;

use lstm_core::{
    Bias, CellKind, Error, LayerGradients, LayerOutputGradients, MatrixShape, Result, State, WeightGradients,
    arithmetic::CHUNK, shape::checked_len,
};

use crate::{
    args::{Address, BackArgs, CellOptions, GateBounds, PersistentBackArgs, SumArgs},
    backend::CudaBackend,
    driver::{Driver, size},
    launches::{Map, Operand, at, back_tiles, gemm, map, parts_in_turns, signed, step_tile, sum, sum_launch},
    layer::{InOne, Loaded},
    persistent::Way,
    tensor::Tensor,
    trace::Trace,
};

const OP: &str = "backward";

/// Chunks of as many steps each, in the order in which their gradients are added.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Chunks {
    /// The first chunk's first step.
    start: usize,
    steps: usize,
    count: usize,
    /// Steps from one chunk to the next.
    on: isize,
}

impl Chunks {
    /// Those of a sequence: the whole ones, and what is left over at its end, in the order of the way back.
    fn of(steps: usize, reverse: bool) -> impl Iterator<Item = Self> {
        let (count, rest) = (steps / CHUNK, steps % CHUNK);
        let (start, on) = if reverse { (0, CHUNK as isize) } else { (count.max(1) * CHUNK - CHUNK, -(CHUNK as isize)) };
        let whole = Chunks { start, steps: CHUNK, count, on };
        let rest = Chunks { start: count * CHUNK, steps: rest, count: rest.min(1), on: 0 };
        let both = if reverse { [whole, rest] } else { [rest, whole] };
        both.into_iter().filter(|chunks| chunks.count > 0)
    }
}

/// A backward pass under way.
struct Pass<'a, D: Driver> {
    b: &'a CudaBackend<D>,
    layer: &'a Loaded<D>,
    trace: &'a Trace<D>,
    /// The gates' gradients, `[steps * batch, 4 * hidden]`.
    dz: D::Memory,
    /// With a projection, the gradient of its result, `[steps * batch, state]`, and its operand, `[steps * batch, hidden]`.
    projected: Option<[D::Memory; 2]>,
}

impl<D: Driver> CudaBackend<D> {
    /// The gradients of a checked upstream.
    pub(crate) fn gradients(
        &self,
        layer: &Loaded<D>,
        trace: &Trace<D>,
        upstream: LayerOutputGradients<'_, Tensor<D>>,
    ) -> Result<LayerGradients<Tensor<D>>> {
        let (driver, spec) = (&self.driver, &layer.spec);
        let (steps, batch, hidden, state) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let alloc = |sizes: &[usize]| driver.alloc(OP, checked_len(OP, sizes)?);
        let rows = steps * batch;
        let projected = spec.proj_size.map(|_| Ok::<_, Error>([alloc(&[rows, state])?, alloc(&[rows, hidden])?]));
        let pass = Pass { b: self, layer, trace, dz: alloc(&[rows, 4, hidden])?, projected: projected.transpose()? };
        let d = State {
            h: self.tensor(OP, MatrixShape::new(batch, state))?,
            c: self.tensor(OP, MatrixShape::new(batch, hidden))?,
        };
        for (from, to) in [(&upstream.state.h, &d.h), (&upstream.state.c, &d.c)] {
            let len = to.shape.len();
            let (from, to) = (driver.address(&from.data), driver.address(&to.data));
            driver.launch(OP, &map(OP, Map::Snap, from, to, len, 0.0)?)?;
        }
        match layer.in_one(Way::Back, batch) {
            Some(in_one) => pass.steps_in_one(upstream.y, &d, in_one)?,
            None => pass.steps(upstream.y, &d)?,
        }
        let mut weights = upstream.accumulate;
        for chunks in Chunks::of(steps, spec.reverse) {
            weights = Some(pass.weights(chunks, weights)?);
        }
        let weights = weights.ok_or_else(|| Error::shape("backward: steps", "at least 1", 0))?;
        Ok(LayerGradients { x: if upstream.need_x { Some(pass.input()?) } else { None }, state: d, weights })
    }
}

impl<D: Driver> Pass<'_, D> {
    fn address(&self, memory: &D::Memory) -> Address {
        self.b.driver.address(memory)
    }

    /// Memory of `[steps * batch, cols]` from a step on.
    fn rows(&self, memory: &D::Memory, t: usize, cols: usize) -> Address {
        at(self.address(memory), t * self.trace.batch * cols)
    }

    fn steps_in_one(&self, dy: &Tensor<D>, d: &State<Tensor<D>>, in_one: InOne) -> Result<()> {
        let (driver, trace, spec) = (&self.b.driver, self.trace, &self.layer.spec);
        let (steps, batch, hidden, state) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let dz = self.address(&self.dz);
        let [projected, unprojected] =
            self.projected.as_ref().map_or([0; 2], |both| both.each_ref().map(|memory| self.address(memory)));
        // What is passed on through memory.
        let passed = match in_one {
            InOne::Clusters(..) => [(0, 0); 2],
            InOne::Persistent(..) => [(dz, 4 * hidden), (projected, state)],
        };
        for (passed, size) in passed.into_iter().filter(|(passed, _)| *passed != 0) {
            let len = checked_len(OP, &[steps, batch, size])?;
            driver.launch(OP, &map(OP, Map::Sentinel, 0, passed, len, 0.0)?)?;
        }
        let shares = in_one.shares(OP)?;
        let args = PersistentBackArgs {
            u: self.address(&self.layer.u),
            dy: self.address(&dy.data),
            gates: self.address(&trace.gates),
            h: self.address(&trace.h),
            c: self.address(&trace.c),
            peephole: self.layer.peephole(driver),
            w_hr: self.layer.projection(driver),
            dh: self.address(&d.h.data),
            dc: self.address(&d.c.data),
            dz,
            projected,
            unprojected,
            active: trace.active.as_ref().map_or(0, |active| self.address(active)),
            steps: size(OP, steps)?,
            batch: size(OP, batch)?,
            hidden: size(OP, hidden)?,
            units: shares.units,
            rows: shares.rows,
            reverse: spec.reverse.into(),
            state: size(OP, state)?,
            features: shares.features,
            part: shares.part,
            held: shares.held,
            cell: CellOptions::new(spec),
            bounds: GateBounds::new(spec),
        };
        driver.launch(OP, &in_one.launch(OP, batch, args)?)
    }

    fn steps(&self, dy: &Tensor<D>, d: &State<Tensor<D>>) -> Result<()> {
        let (driver, trace, spec) = (&self.b.driver, self.trace, &self.layer.spec);
        let (steps, batch, hidden, state) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let (gates, through_u) = back_tiles(driver, [batch, state, hidden]);
        let sums = gates.map(|_| driver.alloc(OP, checked_len(OP, &[4, batch, state])?)).transpose()?;
        // One more than there are steps, without a step of its own: the initial state's gradient.
        for n in 0..=steps {
            let visit = |n: usize| if spec.reverse { n } else { steps - 1 - n };
            let step = (n < steps).then(|| visit(n));
            let visited = (n > 0).then(|| visit(n - 1));
            let (old, new) = step.map_or((0, 0), |t| if spec.reverse { (t + 1, t) } else { (t, t + 1) });
            let here = |memory: &D::Memory, cols: usize| step.map_or(0, |t| self.rows(memory, t, cols));
            let there = |memory: &D::Memory, cols: usize| visited.map_or(0, |t| self.rows(memory, t, cols));
            let args = BackArgs {
                dz_next: there(&self.dz, 4 * hidden),
                gates_next: there(&trace.gates, 4 * hidden),
                u: self.address(&self.layer.u),
                w_hr: self.layer.projection(driver),
                dy: here(&dy.data, state),
                gates: here(&trace.gates, 4 * hidden),
                c_old: self.rows(&trace.c, old, hidden),
                c_new: self.rows(&trace.c, new, hidden),
                h_new: self.rows(&trace.h, new, state),
                peephole: self.layer.peephole(driver),
                dh: self.address(&d.h.data),
                dc: self.address(&d.c.data),
                dz: here(&self.dz, 4 * hidden),
                projected: self.projected.as_ref().map_or(0, |[projected, _]| here(projected, state)),
                unprojected: self.projected.as_ref().map_or(0, |[_, operand]| here(operand, hidden)),
                sums: sums.as_ref().map_or(0, |sums| self.address(sums)),
                batch: size(OP, batch)?,
                active: size(OP, step.map_or(0, |t| trace.active(t)))?,
                active_next: size(OP, visited.map_or(0, |t| trace.active(t)))?,
                hidden: size(OP, hidden)?,
                state: size(OP, state)?,
                unused: 0,
                cell: CellOptions::new(spec),
                bounds: GateBounds::new(spec),
            };
            if let Some(tile) = gates.filter(|_| visited.is_some()) {
                driver.launch(OP, &tile.launch_four(OP, "back_gates", [batch, state], args)?)?;
            }
            if spec.proj_size.is_none() {
                let kernels = ["back_small", "back_medium", "fast_back", "back_joined"];
                driver.launch(OP, &through_u.launch(OP, &kernels, [batch, hidden], args)?)?;
                continue;
            }
            let kernels = ["back_state_small", "back_state_medium", "fast_back_state", "back_state_joined"];
            driver.launch(OP, &through_u.launch(OP, &kernels, [batch, state], args)?)?;
            if step.is_some() {
                let kernels = ["back_units_small", "back_units_medium", "fast_back_units"];
                let tile = step_tile(driver, [batch, hidden, state]);
                driver.launch(OP, &tile.launch(OP, &kernels, [batch, hidden], args)?)?;
            }
        }
        Ok(())
    }

    /// The weights' gradients of some chunks of steps, added to `onto`: a product over each one's rows.
    fn weights(&self, chunks: Chunks, onto: Option<WeightGradients<Tensor<D>>>) -> Result<WeightGradients<Tensor<D>>> {
        let (trace, spec) = (self.trace, &self.layer.spec);
        let (batch, hidden, state) = (trace.batch, spec.hidden_size, spec.state_size());
        let (rows, gates) = (chunks.steps * batch, 4 * hidden);
        let onto = onto.as_ref();
        let dz = self.rows(&self.dz, chunks.start, gates);
        let x = self.rows(&trace.x.data, chunks.start, spec.input_size);
        let before = chunks.start + usize::from(spec.reverse);
        let of = |range: Range<usize>| Operand::beside(at(dz, range.start), gates);

        let w = self.result(MatrixShape::new(gates, spec.input_size))?;
        let x = Operand { snapped: true, ..Operand::beside(x, spec.input_size) };
        self.outer((of(0..gates), gates), (x, spec.input_size), chunks, onto.map(|o| (&o.input, 0)), (&w, 0))?;

        let u = self.result(MatrixShape::new(gates, state))?;
        let onto_u = |row: usize| onto.map(|o| (&o.recurrent, row));
        if spec.cell == CellKind::PeepholeDense {
            let c = Operand::beside(self.rows(&trace.c, before, hidden), hidden);
            // The candidate does not see the state: its gradient is that of no gradient.
            let zero = self.b.constant(OP, 0.0)?;
            let none = Operand { line: 0, step: 0, ..Operand::lines(self.address(&zero), 0) };
            let parts =
                [(0..2 * hidden, of(0..0)), (2 * hidden..3 * hidden, none), (3 * hidden..gates, of(3 * hidden..gates))];
            for (range, dz) in parts {
                self.outer((dz, range.len()), (c, hidden), chunks, onto_u(range.start), (&u, range.start))?;
            }
        } else {
            let h = Operand::beside(self.rows(&trace.h, before, state), state);
            self.outer((of(0..gates), gates), (h, state), chunks, onto_u(0), (&u, 0))?;
        }

        let bias = match spec.bias {
            Bias::None => None,
            _ => Some(self.column_sums(
                (dz, gates),
                [rows, gates],
                chunks,
                onto.and_then(|o| o.bias.as_ref()),
                |args| args,
            )?),
        };
        let projection = match &self.projected {
            Some([projected, operand]) => {
                let out = self.result(MatrixShape::new(state, hidden))?;
                let d = Operand::beside(self.rows(projected, chunks.start, state), state);
                let m = Operand::beside(self.rows(operand, chunks.start, hidden), hidden);
                let onto = onto.and_then(|o| o.projection.as_ref()).map(|o| (o, 0));
                self.outer((d, state), (m, hidden), chunks, onto, (&out, 0))?;
                Some(out)
            }
            None => None,
        };
        let peephole = match spec.cell {
            CellKind::PeepholeDiagonal => {
                let after = chunks.start + usize::from(!spec.reverse);
                let vector = |k: usize, gate: usize, place: usize| {
                    let by = self.rows(&trace.c, place, hidden);
                    // Counted from the chunk's first step on.
                    let active = trace.active.as_ref().map_or(0, |active| at(self.address(active), chunks.start));
                    let batch = size(OP, batch)?;
                    let onto = onto.and_then(|o| o.peephole.as_ref()).map(|p| &p[k]);
                    let d = (at(dz, gate * hidden), gates);
                    self.column_sums(d, [rows, hidden], chunks, onto, |args| SumArgs { by, active, batch, ..args })
                };
                Some([vector(0, 0, before)?, vector(1, 1, before)?, vector(2, 3, after)?])
            }
            _ => None,
        };
        Ok(WeightGradients { input: w, recurrent: u, bias, projection, peephole })
    }

    fn result(&self, shape: MatrixShape) -> Result<Tensor<D>> {
        self.b.tensor(OP, shape)
    }

    /// `onto + d^T x` over the rows of each chunk, from a row of the result on.
    fn outer(
        &self,
        (d, lines): (Operand, usize),
        (x, cols): (Operand, usize),
        chunks: Chunks,
        onto: Option<(&Tensor<D>, usize)>,
        (out, row): (&Tensor<D>, usize),
    ) -> Result<()> {
        let (driver, batch) = (&self.b.driver, self.trace.batch);
        let from = |tensor: &Tensor<D>, row: usize| at(self.address(&tensor.data), row * cols);
        let (mut acc, out) = (onto.map(|(onto, row)| (from(onto, row), cols)), from(out, row));
        let shape = [lines, cols, chunks.steps * batch];
        let distance = |operand: Operand| chunks.on * (batch * operand.step) as isize;
        let in_turns = chunks.count == 1
            || parts_in_turns(driver, shape)
            || [d, x].into_iter().any(|operand| signed(OP, distance(operand)).is_err());
        let (turns, parts) = if in_turns { (chunks.count, 1) } else { (1, chunks.count) };
        for n in 0..turns {
            // Operands lie from the first chunk on.
            let part = |operand: Operand| Operand {
                address: operand.address.wrapping_add_signed(4 * n as i64 * distance(operand) as i64),
                part: if in_turns { 0 } else { distance(operand) },
                ..operand
            };
            driver.launch(OP, &gemm(driver, OP, shape, parts, (part(d), part(x)), acc, out)?)?;
            acc = Some((out, cols));
        }
        Ok(())
    }

    fn column_sums(
        &self,
        d: (Address, usize),
        shape: [usize; 2],
        chunks: Chunks,
        onto: Option<&Tensor<D>>,
        change: impl Fn(SumArgs) -> SumArgs,
    ) -> Result<Tensor<D>> {
        let out = self.result(MatrixShape::new(1, shape[1]))?;
        let onto = onto.map(|onto| self.address(&onto.data));
        let args = sum(OP, d, shape, onto, self.address(&out.data))?;
        let part = signed(OP, chunks.on * self.trace.batch as isize)?;
        let args = SumArgs { parts: size(OP, chunks.count)?, part, ..args };
        self.b.driver.launch(OP, &sum_launch(OP, change(args))?)?;
        Ok(out)
    }

    /// The input's gradient, of all steps at once: `((dz_i W_i + dz_f W_f) + dz_g W_g) + dz_o W_o`.
    fn input(&self) -> Result<Tensor<D>> {
        let (driver, trace, spec) = (&self.b.driver, self.trace, &self.layer.spec);
        let (rows, hidden, features) = (trace.steps * trace.batch, spec.hidden_size, spec.input_size);
        let out = self.result(MatrixShape::new(rows, features))?;
        let dz = Operand { part: hidden as isize, ..Operand::lines(self.address(&self.dz), 4 * hidden) };
        let w =
            Operand { part: (hidden * features) as isize, ..Operand::beside(self.address(&self.layer.w), features) };
        let shape = [rows, features, hidden];
        driver.launch(OP, &gemm(driver, OP, shape, 4, (dz, w), None, self.address(&out.data))?)?;
        Ok(out)
    }
}
