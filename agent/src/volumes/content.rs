//! Who brings the content of `ConfigMap`s and `Secret`s.
//!
//! Problem: files and variables of pods are to be made alike whether their content comes from an API server or from somebody who uses
//! beelet as a library. Approach: one trait, with what it gives being data only; who implements it caches and watches.

use std::fmt;

use beelet_core::content::{Found, ObjectError};
use beelet_core::spec::ObjectRef;

/// Gives objects. May block, but not for long: it is asked while a pod's volumes are made, before each start of a container that refers
/// to an object, and once a minute for each volume that does.
pub trait Objects: Send + Sync + fmt::Debug + 'static {
    /// The object as it is now.
    ///
    /// # Errors
    /// It is not there, or nobody can say.
    fn get(&self, namespace: &str, object: &ObjectRef) -> Found;
}

/// Without an API server there are none.
#[derive(Clone, Copy, Debug)]
pub struct NoObjects;

impl Objects for NoObjects {
    fn get(&self, namespace: &str, object: &ObjectRef) -> Found {
        Err(ObjectError::NoClient { namespace: namespace.to_owned(), object: object.clone() })
    }
}
