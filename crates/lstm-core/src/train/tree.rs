//! How a batch is cut into shards, and the order in which the gradients of shards are summed.

use std::ops::Range;

use crate::error::Result;

/// Part number `k` of `0..n`, cut into `parts` parts: `floor(k * n / parts) .. floor((k + 1) * n / parts)`.
pub(super) fn part(n: usize, parts: usize, k: usize) -> Range<usize> {
    let bound = |k: usize| (k as u128 * n as u128 / parts as u128) as usize;
    bound(k)..bound(k + 1)
}

/// The largest power of two below `n`, which is at least 2.
fn largest_power_of_two_below(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

/// Whether the tree over `leaves` leaves has a node whose children are `left` and `right`.
fn are_siblings(leaves: usize, left: &Range<usize>, right: &Range<usize>) -> bool {
    let mut node = 0..leaves;
    while node.len() > 1 {
        let middle = node.start + largest_power_of_two_below(node.len());
        if (node.start, middle, node.end) == (left.start, left.end, right.end) {
            return right.start == middle;
        }
        if right.end <= middle {
            node.end = middle;
        } else if left.start >= middle {
            node.start = middle;
        } else {
            return false;
        }
    }
    false
}

/// Sums the values of consecutive leaves in the order of a binary tree, which depends on the number of leaves alone: a
/// node of n > 1 leaves has the first `p` of them on its left, where p is the largest power of two below n, and adds
/// the sum of the right side to that of the left side.
///
/// After n leaves from leaf 0 on, at most as many sums are pending as n has one bits; after leaves that start elsewhere, at
/// most `2 log2(leaves)`.
#[derive(Clone, Debug)]
pub(super) struct TreeSum<T> {
    leaves: usize,
    /// Sums of complete subtrees, with the leaves of each.
    pending: Vec<(Range<usize>, T)>,
}

impl<T> TreeSum<T> {
    /// A sum of `leaves` leaves, of which none has been added.
    pub(super) fn new(leaves: usize) -> Self {
        TreeSum { leaves, pending: Vec::new() }
    }

    /// A sum of leaves whose number is not known yet, from the first on. [`into_sum`](Self::into_sum) adds in the order
    /// of the tree over all leaves that were added.
    pub(super) fn of_any_number() -> Self {
        // Complete subtrees at the start of a tree are the same in every larger one.
        TreeSum::new(1 << (usize::BITS - 2))
    }

    /// Adds the sum of the leaves `range`, which must be a subtree and continue the leaves before it. `add` adds its
    /// second argument to its first.
    pub(super) fn push(
        &mut self,
        mut range: Range<usize>,
        mut value: T,
        mut add: impl FnMut(&mut T, T) -> Result<()>,
    ) -> Result<()> {
        while self.pending.last().is_some_and(|(left, _)| are_siblings(self.leaves, left, &range)) {
            let Some((left, mut sum)) = self.pending.pop() else { break };
            add(&mut sum, value)?;
            (range, value) = (left.start..range.end, sum);
        }
        self.pending.push((range, value));
        Ok(())
    }

    /// The sum of all leaves added so far; `None` if there are none. For a sum that was created with
    /// [`of_any_number`](Self::of_any_number).
    pub(super) fn into_sum(self, mut add: impl FnMut(&mut T, T) -> Result<()>) -> Result<Option<T>> {
        // The last subtrees are the smallest, and deepest in the tree.
        let mut subtrees = self.pending.into_iter().rev().map(|(_, sum)| sum);
        let Some(mut right) = subtrees.next() else { return Ok(None) };
        for mut left in subtrees {
            add(&mut left, right)?;
            right = left;
        }
        Ok(Some(right))
    }

    /// The sums of the largest complete subtrees, with the leaves of each: a single one if all leaves were added.
    pub(super) fn into_subtrees(self) -> Vec<(Range<usize>, T)> {
        self.pending
    }
}

/// The largest subtrees of the tree over `leaves` leaves that consist of leaves in `range`.
pub(super) fn subtrees(leaves: usize, range: Range<usize>) -> Result<Vec<Range<usize>>> {
    let mut tree = TreeSum::new(leaves);
    for leaf in range {
        tree.push(leaf..leaf + 1, (), |(), ()| Ok(()))?;
    }
    Ok(tree.into_subtrees().into_iter().map(|(range, ())| range).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: split, sum both halves, add.
    fn recursive(leaves: Range<usize>) -> String {
        if leaves.len() == 1 {
            return leaves.start.to_string();
        }
        let middle = leaves.start + largest_power_of_two_below(leaves.len());
        format!("({}+{})", recursive(leaves.start..middle), recursive(middle..leaves.end))
    }

    fn add(a: &mut String, b: String) -> Result<()> {
        *a = format!("({a}+{b})");
        Ok(())
    }

    #[test]
    fn parts_are_as_specified() {
        assert_eq!((0..3).map(|k| part(7, 3, k)).collect::<Vec<_>>(), [0..2, 2..4, 4..7]);
        assert_eq!(part(usize::MAX, 2, 1).end, usize::MAX);
    }

    #[test]
    fn trees_are_as_specified() {
        let text = |n: usize| recursive(0..n);
        assert_eq!(text(3), "((0+1)+2)");
        assert_eq!(text(7), "(((0+1)+(2+3))+((4+5)+6))");
        assert_eq!((text(2), text(4)), ("(0+1)".into(), "((0+1)+(2+3))".into()));
    }

    /// The check values of `docs/specification.md`.
    #[test]
    fn sums_match_specified_values() {
        for (n, want) in [(2, 0.0), (3, 0.0), (4, 2.0), (5, 4.0), (6, 4.0), (7, 4.0), (8, 6.0f32)] {
            let (large, mut tree) = (16_777_216.0f32, TreeSum::new(n));
            for leaf in 0..n {
                let value = if leaf == 0 { large } else { 1.0 };
                let add = |sum: &mut f32, value: f32| {
                    *sum += value;
                    Ok(())
                };
                tree.push(leaf..leaf + 1, value, add).unwrap();
            }
            assert_eq!(tree.into_subtrees(), [(0..n, large + want)]);
        }
    }

    /// Any number of ranks adds its own leaves, then the subtrees of all ranks are added.
    #[test]
    fn sums_do_not_depend_on_the_number_of_ranks() {
        for leaves in 1..=20 {
            for ranks in 1..=leaves {
                let mut all = TreeSum::new(leaves);
                for rank in 0..ranks {
                    let own = part(leaves, ranks, rank);
                    let (mut tree, mut most) = (TreeSum::new(leaves), 0);
                    for leaf in own.clone() {
                        tree.push(leaf..leaf + 1, leaf.to_string(), add).unwrap();
                        most = most.max(tree.pending.len());
                    }
                    assert!(ranks > 1 || most <= leaves.ilog2() as usize + 1, "{most} pending of {leaves}");
                    let own_subtrees = tree.into_subtrees();
                    let ranges: Vec<_> = own_subtrees.iter().map(|(range, _)| range.clone()).collect();
                    assert_eq!(ranges, subtrees(leaves, own).unwrap());
                    for (range, value) in own_subtrees {
                        all.push(range, value, add).unwrap();
                    }
                }
                assert_eq!(all.into_subtrees(), [(0..leaves, recursive(0..leaves))], "{ranks} ranks");
            }
        }
    }
}
