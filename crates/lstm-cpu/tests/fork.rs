//! A child process that was forked computes with threads of its own.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use lstm_cpu::{Cpu, Lstm, LstmConfig, arithmetic::Digest, ndarray::Array3};

/// Runs a model that is large enough for several threads, and returns the digest of its outputs.
fn run(lstm: &Lstm<Cpu>) -> String {
    let x = Array3::from_shape_fn((1, 50, 64), |(_, t, k)| ((t * 64 + k) as f32).sin());
    let (y, _) = lstm.forward(&x).unwrap();
    let mut digest = Digest::default();
    y.iter().for_each(|&v| digest.add(v));
    digest.to_string()
}

/// Waits for a child process, and returns its exit code. A child that hangs is killed.
fn wait(child: libc::pid_t) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut status = 0;
    // SAFETY: `status` is valid for writes, and `child` is a child of this process that nobody else waits for.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if Instant::now() > deadline {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status))
}

#[test]
fn a_child_process_runs_with_threads_of_its_own() {
    let cpu = Cpu::builder().threads(3).always_all_threads().build().unwrap();
    let lstm = Lstm::random(&cpu, LstmConfig::new(64, 256), 1).unwrap();
    let expected = run(&lstm);
    for _ in 0..3 {
        // SAFETY: the child only computes and exits. The threads of the test harness hold no lock that it needs.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "{}", std::io::Error::last_os_error());
        if child == 0 {
            // A second call uses the same threads. A grandchild has to start its own again.
            let same = (0..2).all(|_| run(&lstm) == expected);
            // SAFETY: as above.
            let grandchild = unsafe { libc::fork() };
            if grandchild == 0 {
                let code = i32::from(run(&lstm) != expected);
                // SAFETY: ends this process without the destructors that belong to its parent.
                unsafe { libc::_exit(code) };
            }
            let num_threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
            let code = i32::from(!same) + 2 * i32::from(wait(grandchild) != Some(0)) + 4 * i32::from(num_threads != 3);
            // Dropping the model and the pool must not wait for threads of the parent.
            drop(lstm);
            drop(cpu);
            // SAFETY: ends this process without the destructors that belong to its parent.
            unsafe { libc::_exit(code) };
        }
        assert_eq!(wait(child), Some(0));
        assert_eq!(run(&lstm), expected);
    }
}
