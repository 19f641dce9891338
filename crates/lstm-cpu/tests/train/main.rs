//! Tests of training. They are one program because each of several would compile the trainers again.

mod accumulate;
mod checkpoint;
mod common;
mod groups;
mod heads;
mod ranks;
mod shards;
mod thread_ranks;
mod training;
mod transfers;
mod update;
