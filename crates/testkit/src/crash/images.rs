//! From a log to the states a disk may be in.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::recorder::Log;
use super::tree::{Inode, Node, Op, Tree};
use crate::workload::Random;

/// One state that the disk may be in after a power cut.
#[derive(Debug, Clone)]
pub struct CrashImage {
    tree: Tree,
    operations: usize,
    fate: String,
}

/// One thing that is on disk or not, as long as nobody synced it.
#[derive(Debug, Clone)]
struct Effect {
    kind: Kind,
    /// The effect (by number) without which this one cannot be on disk.
    needs: Option<usize>,
    number: usize,
}

#[derive(Debug, Clone)]
enum Kind {
    Write {
        inode: Inode,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLen {
        inode: Inode,
        len: u64,
    },
    /// Names that change together; durable with the first one's directory.
    Names(Vec<(Inode, String, Option<Inode>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    Torn,
}

/// The ways to choose what is on disk, for one point.
#[derive(Debug, Clone, Copy)]
enum Choice {
    All,
    Nothing,
    NamesOnly,
    DataOnly,
    LastOnly,
    LastTorn,
    Random(u32),
}

/// Goes through the points at which the power can be cut, and the states at each.
#[derive(Debug)]
pub struct Images<'a> {
    log: &'a Log,
    /// What is on disk for certain.
    durable: Tree,
    pending: Vec<Effect>,
    /// Operations done.
    done: usize,
    effects: usize,
    choices: Vec<Choice>,
    met: HashSet<u64>,
    seed: u64,
    random: u32,
}

impl<'a> Images<'a> {
    pub(super) fn new(log: &'a Log, seed: u64, random: u32) -> Self {
        let mut images = Self {
            log,
            durable: log.base.clone(),
            pending: Vec::new(),
            done: 0,
            effects: 0,
            choices: Vec::new(),
            met: HashSet::new(),
            seed,
            random,
        };
        images.fill_choices();
        images
    }

    fn fill_choices(&mut self) {
        self.met.clear();
        self.choices = (0..self.random).rev().map(Choice::Random).collect();
        self.choices.extend([
            Choice::LastTorn,
            Choice::LastOnly,
            Choice::DataOnly,
            Choice::NamesOnly,
            Choice::Nothing,
            Choice::All,
        ]);
    }

    fn add(&mut self, kind: Kind, needs: Option<usize>) -> usize {
        let number = self.effects;
        self.effects += 1;
        self.pending.push(Effect {
            kind,
            needs,
            number,
        });
        number
    }

    /// Does the next operation.
    fn advance(&mut self, op: &Op) {
        match op {
            Op::Create {
                dir,
                name,
                inode,
                is_dir,
            } => {
                self.durable.make(*inode, *is_dir);
                self.add(Kind::Names(vec![(*dir, name.clone(), Some(*inode))]), None);
            }
            Op::Link { dir, name, inode } => {
                self.add(Kind::Names(vec![(*dir, name.clone(), Some(*inode))]), None);
            }
            Op::Unlink { dir, name } => {
                self.add(Kind::Names(vec![(*dir, name.clone(), None)]), None);
            }
            Op::Rename { from, to, inode } => {
                let arrives = (to.0, to.1.clone(), Some(*inode));
                let leaves = (from.0, from.1.clone(), None);
                if from.0 == to.0 || self.durable.is_dir(*inode) {
                    self.add(Kind::Names(vec![arrives, leaves]), None);
                } else {
                    let arrival = self.add(Kind::Names(vec![arrives]), None);
                    self.add(Kind::Names(vec![leaves]), Some(arrival));
                }
            }
            Op::Write {
                inode,
                offset,
                bytes,
            } => {
                self.add(
                    Kind::Write {
                        inode: *inode,
                        offset: *offset,
                        bytes: Arc::clone(bytes),
                    },
                    None,
                );
            }
            Op::SetLen { inode, len } => {
                self.add(
                    Kind::SetLen {
                        inode: *inode,
                        len: *len,
                    },
                    None,
                );
            }
            Op::SyncFile { inode } => self.settle(|kind| match kind {
                Kind::Write { inode: of, .. } | Kind::SetLen { inode: of, .. } => of == inode,
                Kind::Names(_) => false,
            }),
            Op::SyncDir { dir } => self.settle(|kind| match kind {
                Kind::Names(names) => names.first().is_some_and(|(of, ..)| of == dir),
                Kind::Write { .. } | Kind::SetLen { .. } => false,
            }),
        }
    }

    /// Makes durable, in order, what `which` picks, what that needs, and what was done to the same names
    /// before: a name that is durable in its new state has no older state left to come.
    fn settle(&mut self, which: impl Fn(&Kind) -> bool) {
        let mut settled: HashSet<usize> = HashSet::new();
        let mut names: HashSet<(Inode, String)> = HashSet::new();
        // From the newest on: what an effect needs, and older effects on its names, come before it.
        for effect in self.pending.iter().rev() {
            let own = match &effect.kind {
                Kind::Names(own) => own.as_slice(),
                Kind::Write { .. } | Kind::SetLen { .. } => &[],
            };
            let overtaken = own
                .iter()
                .any(|(dir, name, _)| names.contains(&(*dir, name.clone())));
            if overtaken || settled.contains(&effect.number) || which(&effect.kind) {
                settled.extend(effect.needs);
                settled.insert(effect.number);
                names.extend(own.iter().map(|(dir, name, _)| (*dir, name.clone())));
            }
        }
        let (now, still) = self
            .pending
            .drain(..)
            .partition(|effect| settled.contains(&effect.number));
        self.pending = still;
        for effect in Vec::<Effect>::from_iter(now) {
            apply(
                &mut self.durable,
                &effect.kind,
                Fate::Kept,
                &mut Random::new(0),
            );
        }
    }

    fn image(&self, choice: Choice) -> CrashImage {
        let number = match choice {
            Choice::Random(number) => u64::from(number) + 1,
            _ => 0,
        };
        let point = self.done as u64;
        let mut random = Random::new(self.seed ^ (point << 20) ^ number);
        let mut tree = self.durable.clone();
        let mut dropped = HashSet::new();
        let mut counts = [0_usize; 3];
        let last = self.pending.last().map(|effect| effect.number);
        for effect in &self.pending {
            let is_last = Some(effect.number) == last;
            let names = matches!(effect.kind, Kind::Names(_));
            let mut fate = match choice {
                Choice::All => Fate::Kept,
                Choice::Nothing => Fate::Dropped,
                Choice::NamesOnly => {
                    if names {
                        Fate::Kept
                    } else {
                        Fate::Dropped
                    }
                }
                Choice::DataOnly => {
                    if names {
                        Fate::Dropped
                    } else {
                        Fate::Kept
                    }
                }
                Choice::LastOnly => {
                    if is_last {
                        Fate::Kept
                    } else {
                        Fate::Dropped
                    }
                }
                Choice::LastTorn => {
                    if is_last {
                        Fate::Torn
                    } else {
                        Fate::Kept
                    }
                }
                Choice::Random(_) => random.pick(&[Fate::Kept, Fate::Dropped, Fate::Torn]),
            };
            if effect.needs.is_some_and(|needed| dropped.contains(&needed)) {
                fate = Fate::Dropped;
            }
            // Names are there or not.
            if names && fate == Fate::Torn {
                fate = random.pick(&[Fate::Kept, Fate::Dropped]);
            }
            counts[fate as usize] += 1;
            if fate == Fate::Dropped {
                dropped.insert(effect.number);
            } else {
                apply(&mut tree, &effect.kind, fate, &mut random);
            }
        }
        let [kept, dropped, torn] = counts;
        let fate = format!(
            "power cut after operation {} of {} ({choice:?}): of what was not synced {kept} kept, {dropped} dropped, {torn} torn",
            self.done,
            self.log.ops.len()
        );
        CrashImage {
            tree,
            operations: self.done,
            fate,
        }
    }
}

fn apply(tree: &mut Tree, kind: &Kind, fate: Fate, random: &mut Random) {
    match kind {
        Kind::Write {
            inode,
            offset,
            bytes,
        } if fate == Fate::Torn => {
            let full_length = random.one_in(2);
            tree.write(*inode, *offset, bytes, || random.one_in(2), full_length);
        }
        Kind::Write {
            inode,
            offset,
            bytes,
        } => tree.write(*inode, *offset, bytes, || true, true),
        Kind::SetLen { inode, len } => tree.set_len(*inode, *len),
        Kind::Names(names) => {
            // The new name first, as a rename may be to the old name's place in time.
            for (dir, name, to) in names {
                tree.set_entry(*dir, name, *to);
            }
        }
    }
}

impl Iterator for Images<'_> {
    type Item = CrashImage;

    fn next(&mut self) -> Option<CrashImage> {
        loop {
            while let Some(choice) = self.choices.pop() {
                let image = self.image(choice);
                let mut hasher = DefaultHasher::new();
                image.tree.listing().hash(&mut hasher);
                if self.met.insert(hasher.finish()) {
                    return Some(image);
                }
            }
            let op = self.log.ops.get(self.done)?;
            self.advance(op);
            self.done += 1;
            self.fill_choices();
        }
    }
}

impl CrashImage {
    /// How many operations had been done when the power was cut.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.operations
    }

    /// When the power was cut and what became of what was not synced, for messages. The same seed
    /// gives the same image again.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.fate
    }

    /// Every path with its content; directories have none.
    #[must_use]
    pub fn listing(&self) -> BTreeMap<String, Option<Arc<Vec<u8>>>> {
        self.tree.listing()
    }

    /// Makes `directory`, which must not exist, hold this state. Hard links stay such.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn materialise(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir(directory)?;
        let mut made: BTreeMap<Inode, String> = BTreeMap::new();
        let mut outcome = Ok(());
        self.tree.walk(|path, inode, node| {
            let target = directory.join(path);
            let one = match (node, made.get(&inode)) {
                (Node::Dir(_), _) => fs::create_dir(target),
                (Node::File(_), Some(first)) => fs::hard_link(directory.join(first), target),
                (Node::File(content), None) => {
                    made.insert(inode, path.to_owned());
                    fs::write(target, content.as_slice())
                }
            };
            if outcome.is_ok() {
                outcome = one;
            }
        });
        outcome
    }
}
