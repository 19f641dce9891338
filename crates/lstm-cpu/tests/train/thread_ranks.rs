//! Ranks of a training run that are threads of one process.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use lstm_cpu::{Error, Result, train::Collective};

/// A rank that is a thread, with a channel from each rank to each other.
pub(crate) struct ThreadRank {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl ThreadRank {
    fn send(&self, to: usize, message: &[u8]) -> Result<()> {
        self.to[to].send(message.to_vec()).map_err(|error| ended(to, error))
    }

    fn receive(&self, from: usize, message: &mut [u8]) -> Result<()> {
        message.copy_from_slice(&self.from[from].recv().map_err(|error| ended(from, error))?);
        Ok(())
    }
}

fn ended(rank: usize, error: impl ToString) -> Error {
    Error::Device { backend: format!("rank {rank}"), op: "exchange", reason: error.to_string() }
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn all_to_all(&self, sent: &[u8], sent_counts: &[usize], received: &mut [u8], counts: &[usize]) -> Result<()> {
        assert_eq!((sent_counts.iter().sum(), counts.iter().sum()), (sent.len(), received.len()));
        let (mut sent, mut received) = (sent, received);
        for (rank, &count) in sent_counts.iter().enumerate() {
            let (message, rest) = sent.split_at(count);
            self.send(rank, message)?;
            sent = rest;
        }
        for (rank, &count) in counts.iter().enumerate() {
            let (message, rest) = received.split_at_mut(count);
            self.receive(rank, message)?;
            received = rest;
        }
        Ok(())
    }

    fn all_gather(&self, sent: &[u8], received: &mut [u8], counts: &[usize]) -> Result<()> {
        self.all_to_all(&sent.repeat(self.size()), &vec![sent.len(); self.size()], received, counts)
    }
}

/// Runs a function on `size` ranks and returns the results in the order of the ranks.
pub(crate) fn on_ranks<T: Send>(size: usize, run: impl Fn(&ThreadRank) -> T + Sync) -> Vec<T> {
    let mut ranks: Vec<_> = (0..size).map(|rank| ThreadRank { rank, to: vec![], from: vec![] }).collect();
    for from in 0..size {
        for to in 0..size {
            let (sender, receiver) = channel();
            ranks[from].to.push(sender);
            ranks[to].from.push(receiver);
        }
    }
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.into_iter().map(|rank| scope.spawn(move || run(&rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
