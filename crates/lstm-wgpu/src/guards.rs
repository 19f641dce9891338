//! Guards, for tests that no kernel works outside of its tensors: words beyond each of them that must stay as they are.
//! Kernels see them: bindings reach over the whole buffer, and indices beyond it are brought to its last word.

use std::sync::Arc;

use lstm_core::Result;

use crate::{
    errors::device_error,
    gpu::{Gpu, USAGE},
    pool::{Pool, lock},
    tensor::Memory,
};

/// What stands beyond a tensor, and in it until something is written: a NaN that no computation gives.
const GUARD: u32 = 0x7fc5_e47e;

/// Words beyond each tensor, at least.
const WORDS: usize = 256;

/// A buffer that came back, and was not yet looked at.
#[derive(Debug)]
pub(crate) struct Unchecked {
    pub(crate) buffer: wgpu::Buffer,
    /// Where its guards start.
    pub(crate) bytes: u64,
    /// Who asked for it.
    pub(crate) op: &'static str,
}

impl Gpu {
    pub(crate) fn has_guards(&self) -> bool {
        self.pool.unchecked.is_some()
    }

    /// Memory for `len` words with guards, filled with `data` as far as it goes.
    pub(crate) fn guarded(&self, op: &'static str, len: usize, data: &[u8]) -> Result<Arc<Memory>> {
        let size = Pool::size_class(self.checked_bytes(op, len + WORDS)?);
        let mut words = vec![GUARD; size as usize / 4];
        bytemuck::cast_slice_mut(&mut words)[..data.len()].copy_from_slice(data);
        let buffer = self.pool.take(size, USAGE, true);
        self.scoped(op, || {
            let buffer = buffer.unwrap_or_else(|| self.create(size, USAGE));
            self.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&words));
            Arc::new(Memory { buffer, bytes: 4 * len as u64, op, pool: self.pool.clone() })
        })
    }

    /// Looks at the guards of all memory that came back since the last time; how many buffers that were.
    pub(crate) async fn check_guards(&self) -> Result<usize> {
        let op = "check_guards";
        let Some(unchecked) = &self.pool.unchecked else {
            return Err(device_error(op, "there are none; `WgpuBuilder::guards` asks for them"));
        };
        let all = std::mem::take(&mut *lock(unchecked));
        self.submit(op)?;
        if all.is_empty() {
            return Ok(0);
        }
        let mut words = vec![0u32; all.iter().map(Unchecked::guards).sum::<u64>() as usize / 4];
        let size = self.checked_bytes(op, words.len())?;
        let gathered = self.scoped(op, || {
            let gathered = self.create(size, USAGE);
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut at = 0;
            for one in &all {
                encoder.copy_buffer_to_buffer(&one.buffer, one.bytes, &gathered, at, one.guards());
                at += one.guards();
            }
            self.queue.submit([encoder.finish()]);
            Memory { buffer: gathered, bytes: size, op, pool: self.pool.clone() }
        })?;
        self.download(op, &gathered, 0, bytemuck::cast_slice_mut(&mut words)).await?;
        let mut rest = &words[..];
        for one in &all {
            let (guards, after) = rest.split_at(one.guards() as usize / 4);
            rest = after;
            if let Some(k) = guards.iter().position(|&word| word != GUARD) {
                let (len, word) = (one.bytes / 4, guards[k]);
                let why = format!("{word:08x} was written {k} words beyond a tensor of {len}, made for `{}`", one.op);
                return Err(device_error(op, why));
            }
        }
        let count = all.len();
        all.into_iter().for_each(|one| self.pool.give(one.buffer));
        Ok(count)
    }
}

impl Unchecked {
    fn guards(&self) -> u64 {
        self.buffer.size() - self.bytes
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
pub(crate) mod tests {
    use lstm_core::{MatrixShape, Ops};

    use super::*;
    use crate::{backend::Wgpu, parameters::Copy};

    /// Reports it where there is no adapter, which is a failure with `LSTM_REQUIRE` set.
    pub(crate) fn open(guards: bool) -> Option<Wgpu> {
        match Wgpu::builder().guards(guards).blocking() {
            Ok(wgpu) => Some(wgpu),
            Err(error) => {
                eprintln!("{:?}: not run: {error}", std::thread::current().name());
                assert!(std::env::var_os("LSTM_REQUIRE").is_none(), "{error}");
                None
            }
        }
    }

    /// Copies three words to `at` in a tensor of as many, and looks at the guards.
    fn copy_to(wgpu: &Wgpu, at: u32) -> Result<usize> {
        let x = wgpu.upload(MatrixShape::new(1, 3), &[1.0; 3])?;
        let y = wgpu.gpu().allocate("planted", 3)?;
        let parameters = Copy { rows: 1, cols: 3, x_cols: 3, y_start: at, y_cols: 3, ..Copy::default() };
        wgpu.gpu().copy("copy", &x.memory, &y, &parameters)?;
        drop((x, y));
        pollster::block_on(wgpu.check_guards())
    }

    #[test]
    fn what_is_written_outside_of_a_tensor_is_found() {
        let Some(wgpu) = open(true) else { return };
        // The probe's, then these two; nothing is looked at twice.
        assert!(pollster::block_on(wgpu.check_guards()).unwrap() > 100);
        assert_eq!(copy_to(&wgpu, 0).unwrap(), 2);
        // One beyond, many beyond; and before it, which is far beyond: found where indices are brought into the buffer.
        let mut planted = vec![(1, "0 words beyond"), (100, "97 words beyond")];
        if wgpu.gpu().mode.no_contraction {
            planted.push((u32::MAX - 2, "words beyond"));
        }
        for (at, what) in planted {
            let error = copy_to(&wgpu, at).unwrap_err().to_string();
            let found = error.contains(what)
                && error.contains("3f800000")
                && error.contains("a tensor of 3, made for `planted`");
            assert!(found, "{at}: {error}");
            assert_eq!(copy_to(&wgpu, 0).unwrap(), 2, "after {at}");
        }
    }

    #[test]
    fn what_is_read_outside_of_a_tensor_or_before_it_is_written_is_nan() {
        let Some(wgpu) = open(true) else { return };
        let gpu = wgpu.gpu();
        let x = wgpu.upload(MatrixShape::new(1, 3), &[1.0; 3]).unwrap();
        let y = gpu.tensor("planted", MatrixShape::new(1, 5)).unwrap();
        let parameters = Copy { rows: 1, cols: 4, x_cols: 4, y_cols: 4, ..Copy::default() };
        gpu.copy("copy", &x.memory, &y.memory, &parameters).unwrap();
        let mut out = [0.0; 5];
        pollster::block_on(wgpu.download(&y, &mut out)).unwrap();
        assert_eq!(out[..3], [1.0; 3]);
        assert!(out[3..].iter().all(|v| v.to_bits() == GUARD), "{out:?}");
    }

    #[test]
    fn guards_that_are_not_there_can_t_be_looked_at() {
        let Some(wgpu) = open(false) else { return };
        let error = pollster::block_on(wgpu.check_guards()).unwrap_err().to_string();
        assert!(error.contains("WgpuBuilder::guards"), "{error}");
    }
}
