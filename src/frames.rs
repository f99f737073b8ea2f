//! Data out of the frames of inner bodies, without a move that can be saved.

use std::{
    any::{Any, TypeId},
    mem,
};

use bytes::{Buf, Bytes};

/// Takes the data of a frame where it stands: `Bytes` as they are, any other buffer in a copy.
///
/// The type is known where this is compiled, so that nothing is asked at run time.
#[inline]
pub(crate) fn take_bytes<D: Buf + 'static>(data: &mut D) -> Bytes {
    match (data as &mut dyn Any).downcast_mut() {
        Some(bytes) => mem::take(bytes),
        None => data.copy_to_bytes(data.remaining()),
    }
}

/// Lets go of a frame whose data [`take_bytes`] has taken: `Bytes` left nothing that needs a drop.
#[inline]
pub(crate) fn let_go<D: 'static, T>(taken: T) {
    if TypeId::of::<D>() == TypeId::of::<Bytes>() {
        mem::forget(taken);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn bytes_pass_and_other_buffers_are_copied() {
        let mut bytes = Bytes::from(vec![1, 2, 3]);
        let at = bytes.as_ptr();
        let taken = take_bytes(&mut bytes);
        assert_eq!((taken.as_ptr(), &taken[..]), (at, &[1, 2, 3][..]));
        assert!(bytes.is_empty());
        let mut other = VecDeque::from([1, 2, 3]);
        assert_eq!(&take_bytes(&mut other)[..], [1, 2, 3]);
        assert!(other.is_empty());
    }
}
