//! The scope in a request's extensions: how inner layers join it and handlers find it.

use std::{
    error::Error,
    fmt,
    sync::{Arc, atomic::Ordering},
};

use http::{Extensions, Request};

use super::{
    machine::{Opening, Scope},
    options::{Hooks, Options},
};

/// A handle that handlers extract: a door into the scope of their request.
///
/// Sealed: the views are those of this crate.
pub trait View: sealed::Sealed + Sized {
    /// The view of this request's scope.
    ///
    /// # Errors
    /// [`MissingLayer`] if the layer of this view is not around the handler.
    fn from_extensions(extensions: &Extensions) -> Result<Self, MissingLayer>;
}

pub(crate) mod sealed {
    use std::sync::Arc;

    use super::Scope;

    /// What a view says to the machine: which it is, and how it is made.
    #[allow(unnameable_types, reason = "sealed: it is not to be named outside")]
    pub trait Sealed {
        /// One bit for each view, and the highest for an encoder around.
        const BITS: u8;
        /// The view's name, for errors.
        const VIEW: &'static str;
        /// The layer's name, for errors.
        const LAYER: &'static str;
        #[doc(hidden)]
        #[allow(
            private_interfaces,
            reason = "sealed: nobody outside implements or calls it"
        )]
        fn through(scope: Arc<Scope>) -> Self;
    }

    /// A view that a body can have without a layer.
    #[allow(unnameable_types, reason = "sealed: it is not to be named outside")]
    pub trait Standalone: Sealed {
        #[doc(hidden)]
        #[allow(
            private_interfaces,
            reason = "sealed: nobody outside implements or calls it"
        )]
        fn scope(&self) -> &Arc<Scope>;
    }
}

impl<V: sealed::Sealed> View for V {
    fn from_extensions(extensions: &Extensions) -> Result<Self, MissingLayer> {
        match extensions.get::<Entry>() {
            Some(entry) if entry.views & V::BITS != 0 => Ok(V::through(entry.scope.clone())),
            _ => Err(MissingLayer {
                view: V::VIEW,
                layer: V::LAYER,
            }),
        }
    }
}

/// A handler asked for a view whose layer is not around it.
///
/// With the `axum` feature it answers 500, and its text names the layer to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingLayer {
    view: &'static str,
    layer: &'static str,
}

impl MissingLayer {
    /// The view that was asked for: `"Cleanup"`, for instance.
    pub fn view(&self) -> &'static str {
        self.view
    }

    /// The layer to add: `"CleanupLayer"`, for instance.
    pub fn layer(&self) -> &'static str {
        self.layer
    }
}

impl fmt::Display for MissingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { view, layer } = self;
        write!(
            f,
            "no `{layer}` around this handler, which uses `{view}`: add \
             `.layer(bodyguard::{layer}::new())` or `.layer(bodyguard::Stack::new())`"
        )
    }
}

impl Error for MissingLayer {}

/// The bit of a layer with an encoder right outside of it: a `Stack`.
#[cfg(feature = "compression")]
const ENCODES: u8 = 0x80;

/// Whether an encoder further out may encode what this request is answered with.
#[cfg(feature = "compression")]
pub(crate) fn is_encoded_outside(extensions: &Extensions) -> bool {
    let entry = extensions.get::<Entry>();
    entry.is_some_and(|entry| entry.views & ENCODES != 0 && entry.scope.is_live())
}

/// The one extension of a request that has a scope.
#[derive(Debug)]
pub(super) struct Entry {
    scope: Arc<Scope>,
    views: u8,
}

impl Clone for Entry {
    /// Marks the scope: a request that was cloned may be sent more than once, and which copy is
    /// sent first is unknown, so every later inner call gets a child (retry, hedge, mirror).
    fn clone(&self) -> Self {
        self.scope.cloned.store(true, Ordering::Release);
        Self {
            scope: self.scope.clone(),
            views: self.views,
        }
    }
}

/// What a layer brings to each call.
pub(super) struct Arriving<'a> {
    pub(super) views: u8,
    pub(super) options: &'a Arc<Options>,
    pub(super) movable: bool,
}

/// How a layer stands to the scope of a request.
pub(super) enum Entered {
    /// It opened the scope, and owns it.
    Opened(Arc<Scope>),
    /// The scope belongs to an outer layer.
    Joined(Arc<Scope>),
}

/// Joins the request's scope, or opens one: a root, or a child for a cloned request.
pub(super) fn enter<B>(request: &mut Request<B>, arriving: &Arriving<'_>) -> Entered {
    let live = request
        .extensions_mut()
        .get_mut::<Entry>()
        .filter(|entry| entry.scope.is_live());
    let Some(entry) = live else {
        let scope = Scope::open(&arriving.opening(request, arriving.options), None);
        request.extensions_mut().insert(Entry {
            scope: scope.clone(),
            views: arriving.views,
        });
        return Entered::Opened(scope);
    };
    let cloned = entry.scope.cloned.load(Ordering::Acquire);
    // The owner further out cannot be moved: an armed layer gets one of its own under it.
    let moves_alone = arriving.movable && !entry.scope.movable;
    if !cloned && !moves_alone {
        entry.views |= arriving.views;
        entry.scope.join_options(arriving.options);
        return Entered::Joined(entry.scope.clone());
    }
    let (parent, views) = (entry.scope.clone(), entry.views | arriving.views);
    let hooks = match cloned {
        true => Hooks::Both,
        // The same response is the parent's, too: its hooks hear of it there.
        false => Hooks::Inner,
    };
    let options = {
        let state = parent.lock();
        arriving.options.inside(state.options(&parent), hooks)
    };
    let scope = Scope::open(&arriving.opening(request, &options), Some(&parent));
    request.extensions_mut().insert(Entry {
        scope: scope.clone(),
        views,
    });
    Entered::Opened(scope)
}

impl Arriving<'_> {
    fn opening<'a, B>(&self, request: &'a Request<B>, options: &'a Arc<Options>) -> Opening<'a> {
        Opening {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            extensions: request.extensions(),
            options,
            movable: self.movable,
        }
    }
}
