//! The ladder of methods, and the choice of one: a pure function of what works and what is wanted.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::probe::Probe;

/// How a tree is cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Method {
    /// A snapshot of a btrfs subvolume: one step, whatever the size.
    Subvolume,
    /// Each file shares the blocks of its original until one of them is written to.
    Reflink,
    /// Bytes are copied; holes stay holes.
    Copy,
}

impl Method {
    /// Every method, best first.
    pub const ALL: [Self; 3] = [Self::Subvolume, Self::Reflink, Self::Copy];

    /// Whether a clone shares blocks with its source.
    #[must_use]
    pub fn is_copy_on_write(self) -> bool {
        self != Self::Copy
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Subvolume => "subvolume",
            Self::Reflink => "reflink",
            Self::Copy => "copy",
        })
    }
}

impl FromStr for Method {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        let found = Self::ALL.into_iter().find(|one| one.to_string() == text);
        found.ok_or_else(|| {
            let reason = "is no method of cloning; there are subvolume, reflink and copy";
            crate::Error::new(crate::ErrorKind::Invalid, text, reason)
        })
    }
}

/// What the caller wants of the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The best that works.
    #[default]
    Best,
    /// The best that works and shares blocks; an error where none does.
    CopyOnWrite,
    /// This one; an error where it does not work.
    Only(Method),
}

/// Why a method does not work between a source and a target.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The target does not lie on btrfs but on this.
    NotBtrfs(String),
    /// The source is a plain directory.
    NotASubvolume,
    /// A snapshot would miss what lies in another subvolume or file system inside the source.
    Nested(PathBuf),
    /// The log directory becomes a plain directory of the clone.
    PlacedInside,
    /// The file system, by its name, does not let files share blocks.
    NoSharing(String),
    /// Source and target lie on different file systems.
    OtherFileSystem,
    /// The operating system answered this when it was tried.
    Refused(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBtrfs(found) => write!(f, "needs btrfs; the target lies on {found}"),
            Self::NotASubvolume => f.write_str("the source is a plain directory, no subvolume"),
            Self::Nested(path) => write!(
                f,
                "the source has another subvolume or file system inside: {}",
                path.display()
            ),
            Self::PlacedInside => {
                f.write_str("the log directory becomes a plain directory of the clone")
            }
            Self::NoSharing(found) => {
                write!(f, "the target's {found} does not let files share blocks")
            }
            Self::OtherFileSystem => f.write_str("source and target lie on different file systems"),
            Self::Refused(answer) => write!(f, "tried and refused: {answer}"),
        }
    }
}

/// A method that was not used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUsed {
    /// The method.
    pub method: Method,
    /// Why not.
    pub reason: Reason,
}

impl fmt::Display for NotUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.method, self.reason)
    }
}

/// A method, and why none of the better ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The method to use.
    pub method: Method,
    /// Each better method; empty when the method was asked for or is the best there is.
    pub not_used: Vec<NotUsed>,
}

impl Probe {
    /// The method to use for what is wanted.
    ///
    /// # Errors
    /// Each method that would have done, and why it does not work.
    pub fn choose(&self, wanted: Wanted) -> std::result::Result<Choice, Vec<NotUsed>> {
        let mut not_used = Vec::new();
        let candidates = Method::ALL.into_iter().filter(|method| match wanted {
            Wanted::Best => true,
            Wanted::CopyOnWrite => method.is_copy_on_write(),
            Wanted::Only(only) => *method == only,
        });
        for method in candidates {
            match self.works(method) {
                Ok(()) => return Ok(Choice { method, not_used }),
                Err(reason) => not_used.push(NotUsed {
                    method,
                    reason: reason.clone(),
                }),
            }
        }
        Err(not_used)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rung() -> impl Strategy<Value = std::result::Result<(), Reason>> {
        prop_oneof![
            Just(Ok(())),
            Just(Err(Reason::OtherFileSystem)),
            Just(Err(Reason::NotASubvolume)),
            "[a-z]{1,5}".prop_map(|text| Err(Reason::Refused(text))),
        ]
    }

    fn wanted() -> impl Strategy<Value = Wanted> {
        prop_oneof![
            Just(Wanted::Best),
            Just(Wanted::CopyOnWrite),
            prop::sample::select(Method::ALL.as_slice()).prop_map(Wanted::Only),
        ]
    }

    proptest! {
        #[test]
        fn what_is_chosen_works_is_wanted_and_nothing_better_is_passed_over_in_silence(
            subvolume in rung(), reflink in rung(), wanted in wanted(),
        ) {
            let probe = Probe::of("xfs", subvolume, reflink);
            let allowed = |method: Method| match wanted {
                Wanted::Best => true,
                Wanted::CopyOnWrite => method != Method::Copy,
                Wanted::Only(only) => only == method,
            };
            let told = match probe.choose(wanted) {
                Ok(choice) => {
                    prop_assert!(probe.works(choice.method).is_ok());
                    prop_assert!(allowed(choice.method));
                    let better = Method::ALL.iter().filter(|one| **one < choice.method && allowed(**one));
                    prop_assert_eq!(better.count(), choice.not_used.len());
                    choice.not_used
                }
                Err(all) => {
                    prop_assert_ne!(wanted, Wanted::Best);
                    prop_assert_eq!(Method::ALL.iter().filter(|one| allowed(**one)).count(), all.len());
                    all
                }
            };
            for one in told {
                prop_assert_eq!(probe.works(one.method), Err(&one.reason));
            }
        }
    }

    #[test]
    fn a_method_reads_back_from_what_it_prints() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
        }
        let error = "overlay".parse::<Method>().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Invalid);
    }
}
