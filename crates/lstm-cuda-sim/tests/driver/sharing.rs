//! Several devices, and several threads: a context belongs to a thread until another is made current.

use std::thread;

use lstm_cuda::{Cuda, Input, Lstm, LstmConfig, ndarray::Array3};

use crate::{
    Result, ensure,
    simulated_driver::{Host, OUT_OF_MEMORY, Setup, SimulatedDriver},
    work::{STEPS, Work, check, check_all, configs, expected},
};

pub(crate) fn run() -> Result<String> {
    let standin = SimulatedDriver::load()?;
    let all = configs().map(|(_, config)| (config.clone(), expected(&config)));
    for setup in [Setup::PLAIN, Setup { cooperative: false, pools: false, host: Host::Pageable, ..Setup::PLAIN }] {
        standin.reset();
        standin.setup(setup);
        let open = |n| Cuda::new(n).map_err(|e| e.to_string());
        let work = |cuda: &Cuda, n: usize| check_all(&Work::new(cuda, &all[n].0).all()?, all[n].1.as_ref()?);

        // Opened here, used and dropped elsewhere.
        let cuda = open(0)?;
        thread::scope(|scope| scope.spawn(move || work(&cuda, 0)).join().expect("no panic"))?;
        standin.check_end().map_err(|why| format!("elsewhere: {why}"))?;

        // Models of one device on several threads, and one model on two.
        let cuda = open(0)?;
        thread::scope(|scope| {
            let threads: Vec<_> = (0..all.len())
                .map(|n| {
                    scope.spawn({
                        let cuda = &cuda;
                        move || work(cuda, n)
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        one_model(&cuda)?;
        for k in (0..1200).step_by(97) {
            one_fails(&standin, &cuda, &all[0].0, all[0].1.as_ref()?, k).map_err(|why| format!("call {k}: {why}"))?;
        }
        drop(cuda);
        standin.check_end().map_err(|why| format!("threads: {why}"))?;

        // One device twice, and two devices, in turns on one thread.
        standin.attribute("devices", 2);
        for numbers in [[0, 0], [0, 1]] {
            let both = [open(numbers[0])?, open(numbers[1])?];
            let mut turns = both.each_ref().map(|cuda| Work::new(cuda, &all[0].0));
            let want = all[0].1.as_ref()?;
            for (n, want) in want.iter().enumerate() {
                for work in &mut turns {
                    check("in turns", &work.step(n).map_err(|e| e.to_string())?, want)?;
                }
            }
            drop(turns);
            // The first goes while the second is in use.
            let [first, second] = both;
            drop(first);
            work(&second, 1)?;
            drop(second);
            standin.check_end().map_err(|why| format!("devices {numbers:?}: {why}"))?;
        }
        standin.attribute("devices", 1);
    }
    Ok("threads and two devices".into())
}

/// Two threads work, and a call of one of them fails: it can be made again, and the other is not disturbed.
fn one_fails(standin: &SimulatedDriver, cuda: &Cuda, config: &LstmConfig, want: &[Vec<f32>], k: u64) -> Result<()> {
    standin.reset();
    standin.fail(k, OUT_OF_MEMORY, false);
    let work = || -> Result<usize> {
        let (mut work, mut errors) = (Work::new(cuda, config), 0);
        for (n, want) in want.iter().enumerate() {
            let got = work.step(n).or_else(|_| {
                errors += 1;
                work.step(n)
            });
            check(STEPS[n], &got.map_err(|e| e.to_string())?, want)?;
        }
        Ok(errors)
    };
    let errors = thread::scope(|scope| {
        let other = scope.spawn(work);
        Ok::<_, String>(work()? + other.join().expect("no panic")?)
    })?;
    ensure!(errors <= 1, "{errors} steps failed");
    standin.check_use()
}

/// Two threads run one model at a time, some of their batches alike.
fn one_model(cuda: &Cuda) -> Result<()> {
    let lstm = Lstm::random(cuda, LstmConfig::new(3, 12), 5).map_err(|e| e.to_string())?;
    let input = |k: usize| Array3::from_shape_fn((2, 3, 3), |(a, t, i)| (a + t * k) as f32 * 0.25 - i as f32);
    let forward = |k: usize| lstm.forward(Input::from(&input(k))).map(|(y, _)| y).map_err(|e| e.to_string());
    let want = [forward(0)?, forward(1)?];
    let many = |k: usize| (0..20).all(|_| forward(k).is_ok_and(|y| y == want[k]));
    let many = &many;
    thread::scope(|scope| {
        let threads = [0, 1].map(|k| scope.spawn(move || many(k)));
        ensure!(threads.into_iter().all(|thread| thread.join().expect("no panic")), "one model on two threads differs");
        Ok(())
    })
}
