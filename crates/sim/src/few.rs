//! A list that mostly holds one or two things: the registers of a world have thousands of them,
//! which are copied whenever a crash is tried.

use std::ops::Deref;

/// Some values in order. One or two need no memory of their own.
#[derive(Clone, Debug)]
pub enum Few<T> {
    /// Exactly one.
    One([T; 1]),
    /// Exactly two.
    Two([T; 2]),
    /// Any other number.
    Many(Vec<T>),
}

impl<T: Copy> Few<T> {
    /// A list of one.
    pub const fn one(value: T) -> Self {
        Self::One([value])
    }

    /// Adds at the end.
    pub fn push(&mut self, value: T) {
        match self {
            Self::One([first]) => *self = Self::Two([*first, value]),
            Self::Two([first, second]) => *self = Self::Many(vec![*first, *second, value]),
            Self::Many(values) if values.is_empty() => *self = Self::one(value),
            Self::Many(values) => values.push(value),
        }
    }

    /// Adds at the front.
    pub fn push_front(&mut self, value: T) {
        match self {
            Self::One([last]) => *self = Self::Two([value, *last]),
            Self::Two([second, third]) => *self = Self::Many(vec![value, *second, *third]),
            Self::Many(values) if values.is_empty() => *self = Self::one(value),
            Self::Many(values) => values.insert(0, value),
        }
    }

    /// Keeps what is asked for.
    pub fn retain(&mut self, is_kept: impl Fn(&T) -> bool) {
        let kept = match self {
            Self::Many(values) => {
                values.retain(is_kept);
                match values[..] {
                    [one] => Self::one(one),
                    [one, two] => Self::Two([one, two]),
                    _ => return,
                }
            }
            Self::Two([one, two]) => match (is_kept(one), is_kept(two)) {
                (true, true) => return,
                (true, false) => Self::one(*one),
                (false, true) => Self::one(*two),
                (false, false) => Self::Many(Vec::new()),
            },
            Self::One([one]) if is_kept(one) => return,
            Self::One(_) => Self::Many(Vec::new()),
        };
        *self = kept;
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(values) => values,
            Self::Two(values) => values,
            Self::Many(values) => values,
        }
    }
}

impl<T: Copy> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut few = Self::Many(Vec::new());
        for value in values {
            few.push(value);
        }
        few
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to keep some of up to four values, as a plain list would.
    #[test]
    fn it_is_a_list() {
        for length in 0..5u32 {
            for kept in 0..1 << length {
                let is_kept = |value: &u32| kept >> value & 1 == 1;
                let mut few: Few<u32> = (1..length).collect();
                if length > 0 {
                    few.push_front(0);
                }
                assert_eq!(few[..], (0..length).collect::<Vec<_>>());
                few.retain(is_kept);
                assert_eq!(few[..], (0..length).filter(is_kept).collect::<Vec<_>>());
                few.push(9);
                assert_eq!(few.last(), Some(&9));
            }
        }
    }
}
