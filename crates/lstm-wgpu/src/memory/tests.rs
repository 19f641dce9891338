use lstm_core::{MatrixShape, Ops, Result};

use super::{
    guards::GUARD_WORD,
    pool::{MAX_BIND_GROUPS, MAX_FREE_BUFFERS},
    *,
};
use crate::{
    backend::Wgpu,
    shader::{CopyParameters, Unary},
    testing::open_adapter,
};

#[test]
fn size_class_is_large_enough_and_wastes_at_most_a_quarter() {
    for bytes in (4..100_000).step_by(4).chain([1 << 20, (1 << 20) + 4, (1 << 27) - 4]) {
        let size = BufferPool::size_class(bytes);
        assert!(size >= bytes && size.is_multiple_of(4) && size <= (bytes + bytes / 4).max(256), "{bytes}: {size}");
        assert_eq!(BufferPool::size_class(size), size);
    }
}

#[test]
fn bind_groups_are_cached_as_long_as_their_buffers_exist() {
    let Some(wgpu) = open_adapter(false) else { return };
    let (gpu, x) = (wgpu.gpu(), wgpu.upload(MatrixShape::new(1, 3), &[1.0; 3]).unwrap());
    let snapped_tensor = || gpu.apply_unary("snap", Unary::Snap, &x, 0.0).unwrap();
    let bind_group_count = || lock(&gpu.pool.bind_groups).len();
    drop(snapped_tensor());
    let initial_bind_group_count = bind_group_count();
    drop(snapped_tensor());
    assert_eq!(bind_group_count(), initial_bind_group_count, "the second call reuses the buffers and the bind group");

    // If there are more buffers than the pool keeps, it drops the oldest, and their bind groups with them.
    let many_tensors: Vec<_> = (0..MAX_FREE_BUFFERS + 10).map(|_| snapped_tensor()).collect();
    let larger_bind_group_count = bind_group_count();
    assert!(larger_bind_group_count > initial_bind_group_count + 100);
    drop(many_tensors);
    assert!(bind_group_count() < larger_bind_group_count);
    let free_buffers = lock(&gpu.pool.free_buffers);
    for (buffer, _) in lock(&gpu.pool.bind_groups).keys().flat_map(|(_, buffers)| buffers) {
        let buffer_exists = buffer == x.buffer() || free_buffers.iter().any(|f| f.buffer == *buffer);
        assert!(buffer_exists, "a bind group keeps a dropped buffer alive");
    }
    drop(free_buffers);

    // The number of bind groups is limited.
    let other_tensors: Vec<_> = (0..MAX_BIND_GROUPS + 10).map(|_| snapped_tensor()).collect();
    assert!(bind_group_count() <= MAX_BIND_GROUPS && other_tensors.len() > MAX_BIND_GROUPS);
}

/// Copies three words to offset `y_offset` of a tensor of three words, and checks the guard words.
fn copy_with_offset(wgpu: &Wgpu, y_offset: u32) -> Result<usize> {
    let x = wgpu.upload(MatrixShape::new(1, 3), &[1.0; 3])?;
    let y = wgpu.gpu().allocate("test", 3)?;
    let parameters = CopyParameters { rows: 1, cols: 3, x_stride: 3, y_offset, y_stride: 3, ..Default::default() };
    wgpu.gpu().copy_rectangle("copy", &x.memory, &y, &parameters)?;
    drop((x, y));
    pollster::block_on(wgpu.check_guards())
}

#[test]
fn check_guards_detects_out_of_bounds_writes() {
    let Some(wgpu) = open_adapter(true) else { return };
    // The first check covers the probe's buffers, later ones only the two of the copy.
    assert!(pollster::block_on(wgpu.check_guards()).unwrap() > 100);
    assert_eq!(copy_with_offset(&wgpu, 0).unwrap(), 2);
    // The write starts one or many words after the end.
    let mut faults = vec![(1, ", 0 words after"), (100, ", 97 words after")];
    // A write before the start has an index far beyond the end. It is detected where indices are clamped.
    if wgpu.gpu().mode.no_contraction {
        faults.push((u32::MAX - 2, " words after"));
    }
    for (offset, message) in faults {
        let error = copy_with_offset(&wgpu, offset).unwrap_err().to_string();
        let detected = error.contains(message)
            && error.contains("3f800000")
            && error.contains("a tensor of 3 elements that `test` allocated");
        assert!(detected, "{offset}: {error}");
        assert_eq!(copy_with_offset(&wgpu, 0).unwrap(), 2, "after {offset}");
    }
}

#[test]
fn guarded_memory_reads_as_nan_out_of_bounds_and_before_it_is_written() {
    let Some(wgpu) = open_adapter(true) else { return };
    let gpu = wgpu.gpu();
    let x = wgpu.upload(MatrixShape::new(1, 3), &[1.0; 3]).unwrap();
    let y = gpu.allocate_tensor("test", MatrixShape::new(1, 5)).unwrap();
    let parameters = CopyParameters { rows: 1, cols: 4, x_stride: 4, y_stride: 4, ..Default::default() };
    gpu.copy_rectangle("copy", &x.memory, &y.memory, &parameters).unwrap();
    let mut out = [0.0; 5];
    pollster::block_on(wgpu.download(&y, &mut out)).unwrap();
    assert_eq!(out[..3], [1.0; 3]);
    assert!(out[3..].iter().all(|v| v.to_bits() == GUARD_WORD), "{out:?}");
}

#[test]
fn check_guards_fails_without_guards() {
    let Some(wgpu) = open_adapter(false) else { return };
    let error = pollster::block_on(wgpu.check_guards()).unwrap_err().to_string();
    assert!(error.contains("WgpuBuilder::guards"), "{error}");
}
