//! Sizes that a file does not fix, such as the batch size.
//!
//! A graph is evaluated twice, each time with other sizes in place of those that are not fixed. What is found must be
//! the same both times. The sizes are small primes, so that a product or a sum of them is not taken for one of them.

use std::collections::BTreeMap;

/// How many times a graph is evaluated.
pub(crate) const TRIALS: usize = 2;

/// The size of an axis in each trial. A fixed size is the same in both.
pub(crate) type Size = [usize; TRIALS];

/// Trial `k` takes the primes from index `k` on.
const PRIMES: [usize; 26] =
    [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101];

/// What must hold for sizes that the file does not fix, found while the graph was evaluated. The evaluation then starts
/// again.
#[derive(Clone, Debug)]
pub(crate) enum ShapeConstraint {
    /// The size must have this value.
    Fixed(String, usize),
    /// Two sizes must be equal.
    Equal(String, String),
    /// An input has this number of axes.
    Rank(String, usize),
}

/// The sizes that a file does not fix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes {
    /// For each size that is another one, the other one.
    equal: BTreeMap<String, String>,
    fixed: BTreeMap<String, usize>,
    ranks: BTreeMap<String, usize>,
    /// The names of the sizes that have been used, in the order of their primes.
    used: Vec<String>,
}

impl Sizes {
    /// Forgets which sizes were used, but not what was found out.
    pub(crate) fn restart(&mut self) {
        self.used.clear();
    }

    /// The size of the symbolic axis `name`, which is added if it is new; `None` if the graph has more symbolic axes than
    /// can be told apart.
    pub(crate) fn get(&mut self, name: &str) -> Option<Size> {
        let name = self.resolve(name);
        if let Some(&n) = self.fixed.get(&name) {
            return Some([n; TRIALS]);
        }
        let index = self.used.iter().position(|used| *used == name).unwrap_or(self.used.len());
        if index == self.used.len() {
            self.used.push(name);
        }
        (index + 1 < PRIMES.len()).then(|| [PRIMES[index], PRIMES[index + 1]])
    }

    /// The number of axes of an input without a declared shape.
    pub(crate) fn rank(&self, input: &str) -> Option<usize> {
        self.ranks.get(input).copied()
    }

    /// Compares two sizes. If they differ, the error is the constraint that makes them equal; `None` if nothing can.
    pub(crate) fn compare(&self, a: Size, b: Size) -> Result<(), Option<ShapeConstraint>> {
        if a == b {
            return Ok(());
        }
        let is_fixed = |size: Size| size.iter().all(|&n| n == size[0]);
        let name = |size: Size| {
            let index = PRIMES.windows(TRIALS).position(|primes| primes == size);
            index.and_then(|index| self.used.get(index)).cloned()
        };
        Err(match (name(a), name(b)) {
            (Some(a), Some(b)) => Some(ShapeConstraint::Equal(b, a)),
            (Some(a), None) if is_fixed(b) => Some(ShapeConstraint::Fixed(a, b[0])),
            (None, Some(b)) if is_fixed(a) => Some(ShapeConstraint::Fixed(b, a[0])),
            _ => None,
        })
    }

    /// Adds a constraint for the next evaluation.
    pub(crate) fn add_constraint(&mut self, constraint: ShapeConstraint) {
        match constraint {
            ShapeConstraint::Fixed(name, n) => drop(self.fixed.insert(name, n)),
            ShapeConstraint::Equal(a, b) => drop(self.equal.insert(a, b)),
            ShapeConstraint::Rank(input, rank) => drop(self.ranks.insert(input, rank)),
        }
    }

    /// The name that stands for this size and all that are equal to it.
    fn resolve(&self, name: &str) -> String {
        let mut name = name;
        // A name is only ever set equal to one that stands for itself, so that there is no circle.
        while let Some(other) = self.equal.get(name) {
            name = other;
        }
        name.to_owned()
    }
}
