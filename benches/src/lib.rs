//! Times of one table of cases, on every backend and beside other libraries, and reports of them.
//!
//! The conductor (the program `bench`) starts one process for each that is timed and lets them take turns, so that all meet
//! the same clocks and the same neighbours. It measures the machine itself in the same run: see [`floor`].

pub mod backends;
pub mod case;
pub mod compare;
pub mod conductor;
pub mod floor;
pub mod job;
pub mod machine;
pub mod report;
pub mod results;
pub mod worker;
