//! A step of a stream and of its head makes no system call: it runs on a thread that a seccomp filter kills at the first
//! one. Linux only.
#![cfg(target_os = "linux")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER,
    SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_THREAD, SYS_exit, SYS_getppid, sock_filter, sock_fprog,
};
use lstm_cpu::{CellKind, Cpu, Linear, Lstm, LstmConfig};

/// Kills the calling thread at its next system call, except `exit`, which ends the thread.
fn forbid_system_calls() {
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the system call is the first word of the filter's input.
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_exit as u32),
        instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW),
        instruction(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_KILL_THREAD),
    ];
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls affect the calling thread only; `program` points to `filter`, which lives until the end.
    let results = unsafe {
        [
            libc::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &raw const program),
        ]
    };
    assert_eq!(results, [0, 0], "seccomp is not available: {}", std::io::Error::last_os_error());
}

/// Runs `steps` on a thread without system calls and returns whether it came to its end.
fn ends_without_system_calls(steps: impl FnOnce() + Send + 'static) -> bool {
    let [is_ready, is_done] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let flags = (is_ready.clone(), is_done.clone());
    // The thread is not joined: it can't run the code that ends a Rust thread.
    thread::spawn(move || {
        let (is_ready, is_done) = flags;
        forbid_system_calls();
        is_ready.store(true, Ordering::SeqCst);
        steps();
        is_done.store(true, Ordering::SeqCst);
        // SAFETY: ends this thread. What it owns is leaked.
        unsafe { libc::syscall(SYS_exit, 0) };
    });
    let wait = |flag: &AtomicBool, seconds| {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !flag.load(Ordering::SeqCst) && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
        flag.load(Ordering::SeqCst)
    };
    assert!(wait(&is_ready, 30), "the filter was not installed");
    wait(&is_done, 5)
}

#[test]
fn detects_a_system_call() {
    assert!(ends_without_system_calls(|| ()));
    assert!(!ends_without_system_calls(|| {
        // SAFETY: takes no arguments.
        unsafe { libc::syscall(SYS_getppid) };
    }));
}

#[test]
fn steps_make_no_system_call() {
    let cpu = Cpu::builder().threads(1).build().unwrap();
    let configs = [
        LstmConfig::new(5, 24),
        LstmConfig::new(5, 24).layers(2).proj_size(7),
        LstmConfig::new(5, 24).cell(CellKind::PeepholeDense).clip(1.0),
        LstmConfig::new(64, 300).cell(CellKind::PeepholeDiagonal),
    ];
    for (config, batch) in configs.iter().flat_map(|config| [(config, 1), (config, 3)]) {
        let lstm = Lstm::random(&cpu, config.clone(), 1).unwrap();
        let head = Linear::random(&cpu, config.output_size(), 3, 2).unwrap();
        let mut stream = lstm.stream(batch).unwrap();
        let (x, mut y) = (vec![0.5; batch * config.input_size], vec![0.0; batch * config.output_size()]);
        let (mut out, row) = (vec![0.0; batch * 3], [config.input_size, config.output_size()]);
        let ended = ends_without_system_calls(move || {
            for _ in 0..100 {
                stream.step(&x, &mut y).unwrap();
                head.step(&y, &mut out).unwrap();
                stream.step_some(&[batch - 1], &x[..row[0]], &mut y[..row[1]]).unwrap();
            }
            // Freeing memory may make a system call.
            std::mem::forget((lstm, head, stream, x, y, out));
        });
        assert!(ended, "{config:?}, batch {batch}: a step made a system call");
    }
}
