//! Benchmarks of all backends and of other libraries over one table of cases, with reports.
//!
//! The program `bench` starts one worker process for each backend or library. The workers run one after another in rounds,
//! so that changes of the clock frequency and of the machine's load affect all of them alike. The limits of the machine are
//! measured in the same run: see [`roofline`].

pub mod backends;
pub mod case;
pub mod compare;

pub mod job;
pub mod machine;
pub mod report;
pub mod results;
pub mod roofline;
pub mod runner;
pub mod worker;
