//! Parts of a world that its clones have in common until one of them changes its own.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// A value that is copied when it is changed, not when it is cloned: a crash is tried on a clone
/// of the world, and most of what a world knows stays as it is meanwhile.
#[derive(Debug)]
pub struct Shared<T>(Rc<T>);

impl<T> Shared<T> {
    /// A value that nobody else has yet.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Rc::new(value))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Rc::make_mut(&mut self.0)
    }
}
