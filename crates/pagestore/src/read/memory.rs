//! What was decoded, in memory, bounded by their bytes; what was used longest ago goes first.

use std::collections::{BTreeMap, HashMap};

use neon_snapshot_format::pack::PackId;

/// The address of a frame.
pub(crate) type Address = (PackId, u64);

/// What a cached thing costs beside itself.
const OVERHEAD: u64 = 160;

#[derive(Debug)]
pub(crate) struct Memory<T> {
    limit: u64,
    used: u64,
    clock: u64,
    kept: HashMap<Address, Kept<T>>,
    by_age: BTreeMap<u64, Address>,
}

#[derive(Debug)]
struct Kept<T> {
    value: T,
    cost: u64,
    used: u64,
}

impl<T: Clone> Memory<T> {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: 0,
            clock: 0,
            kept: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, address: Address) -> Option<T> {
        let newest = self.kept.len() as u64 / 4;
        let kept = self.kept.get_mut(&address)?;
        // What is among the newest already stays there: most readings then change nothing.
        if self.clock - kept.used > newest {
            self.by_age.remove(&kept.used);
            self.clock += 1;
            kept.used = self.clock;
            self.by_age.insert(self.clock, address);
        }
        Some(kept.value.clone())
    }

    /// Keeps a value that takes so many bytes.
    pub(crate) fn put(&mut self, address: Address, value: T, bytes: usize) {
        let cost = bytes as u64 + OVERHEAD;
        if cost > self.limit || self.get(address).is_some() {
            return;
        }
        while self.used + cost > self.limit
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            if let Some(gone) = self.kept.remove(&oldest) {
                self.used -= gone.cost;
            }
        }
        self.clock += 1;
        self.used += cost;
        self.by_age.insert(self.clock, address);
        let used = self.clock;
        self.kept.insert(address, Kept { value, cost, used });
    }

    pub(crate) fn remove(&mut self, address: Address) {
        if let Some(gone) = self.kept.remove(&address) {
            self.used -= gone.cost;
            self.by_age.remove(&gone.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first_and_the_bound_holds() {
        let mut memory = Memory::new(3 * (1000 + OVERHEAD));
        let address = |frame| (PackId([0; 16]), frame);
        for frame in 0..3 {
            memory.put(address(frame), (), 1000);
        }
        assert!(memory.get(address(0)).is_some());
        memory.put(address(3), (), 1000);
        assert!(!memory.kept.contains_key(&address(1)) && memory.kept.contains_key(&address(0)));
        memory.put(address(4), (), 100_000);
        assert!(!memory.kept.contains_key(&address(4)) && memory.kept.contains_key(&address(3)));
        assert!(memory.used <= memory.limit);
        memory.put(address(5), (), 3000);
        assert_eq!((memory.kept.len(), memory.by_age.len()), (1, 1));
        memory.remove(address(5));
        memory.remove(address(5));
        assert_eq!((memory.used, memory.by_age.len()), (0, 0));
    }
}
