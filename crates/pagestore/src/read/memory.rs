//! Decoded frames in memory, bounded by their bytes; what was used longest ago goes first.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use neon_snapshot_format::pack::PackId;

/// The address of a frame.
pub(crate) type Address = (PackId, u64);

/// What a cached frame costs beside its bytes.
const OVERHEAD: u64 = 160;

#[derive(Debug)]
pub(crate) struct Memory {
    limit: u64,
    used: u64,
    clock: u64,
    frames: HashMap<Address, (Bytes, u64)>,
    by_age: BTreeMap<u64, Address>,
}

impl Memory {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: 0,
            clock: 0,
            frames: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    pub(crate) fn get(&mut self, address: Address) -> Option<Bytes> {
        let (bytes, used) = self.frames.get_mut(&address)?;
        self.by_age.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.by_age.insert(self.clock, address);
        Some(bytes.clone())
    }

    pub(crate) fn contains(&self, address: Address) -> bool {
        self.frames.contains_key(&address)
    }

    pub(crate) fn put(&mut self, address: Address, bytes: Bytes) {
        let cost = bytes.len() as u64 + OVERHEAD;
        if cost > self.limit || self.get(address).is_some() {
            return;
        }
        while self.used + cost > self.limit
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            if let Some((gone, _)) = self.frames.remove(&oldest) {
                self.used -= gone.len() as u64 + OVERHEAD;
            }
        }
        self.clock += 1;
        self.used += cost;
        self.by_age.insert(self.clock, address);
        self.frames.insert(address, (bytes, self.clock));
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
            memory.put(address(frame), Bytes::from(vec![0; 1000]));
        }
        assert!(memory.get(address(0)).is_some());
        memory.put(address(3), Bytes::from(vec![0; 1000]));
        assert!(!memory.contains(address(1)) && memory.contains(address(0)));
        memory.put(address(4), Bytes::from(vec![0; 100_000]));
        assert!(!memory.contains(address(4)) && memory.contains(address(3)));
        assert!(memory.used <= memory.limit);
        memory.put(address(5), Bytes::from(vec![0; 3000]));
        assert_eq!((memory.frames.len(), memory.by_age.len()), (1, 1));
    }
}
