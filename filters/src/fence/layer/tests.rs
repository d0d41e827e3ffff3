//! Requests stepped by hand through the layer.

use std::task::Waker;

use super::*;
use crate::fence::Claim;
use crate::fence::tests::script::Script;
use crate::fence::tests::{claim, fence_over, kept};
use crate::refusal::Reason;
use crate::testing::answer;

fn request(claim: Option<(Claim, Mode)>) -> (Request<()>, Passage) {
    let mut request = Request::new(());
    let passage = Passage::of(&mut request);
    passage.facts().claim = claim.map(|(claim, mode)| (Box::new(claim), mode));
    (request, passage)
}

/// Calls the layer until it answers; tells whether the service behind it was called.
async fn call(fence: &Fence, request: Request<()>) -> Result<(), Refusal> {
    let inner = answer(|_: Request<()>| Response::new(()));
    let mut service = FenceLayer::new(fence.clone()).layer(inner);
    service.call(request).await.map(|_| ())
}

fn fence() -> Fence {
    fence_over(&Script::new(&[kept("42", 33)]))
}

#[tokio::test(start_paused = true)]
async fn an_admission_is_left_for_whoever_sends() {
    let (request, passage) = request(Some((claim(34), Mode::Enforce)));
    assert!(call(&fence(), request).await.is_ok());
    assert_eq!(passage.facts().decision, Decision::Admitted);
    assert!(passage.facts().admission.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_as_one() {
    let (request, passage) = request(Some((claim(32), Mode::Enforce)));
    let refusal = call(&fence(), request).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::StaleToken);
    assert_eq!(passage.facts().decision, Decision::Refused);
    assert!(passage.facts().admission.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_claim_passes() {
    let (request, passage) = request(None);
    assert!(call(&fence(), request).await.is_ok());
    assert_eq!(passage.facts().decision, Decision::Unfenced);
}

#[tokio::test(start_paused = true)]
async fn what_is_observed_passes_at_once() {
    let (request, passage) = request(Some((claim(32), Mode::Observe)));
    assert!(call(&fence(), request).await.is_ok());
    assert_eq!(passage.facts().decision, Decision::Observed);
    tokio::task::yield_now().await;
    let reason = passage.facts().would_refuse().map(|refusal| refusal.reason);
    assert_eq!(reason, Some(Reason::StaleToken));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_while_it_waits_leaves_nothing_behind() {
    let store = Script::new(&[kept("42", 33)]);
    store.ask_before_commits();
    let fence = fence_over(&store);
    let (request, passage) = request(Some((claim(34), Mode::Enforce)));
    let inner = answer(|_: Request<()>| Response::new(()));
    let mut service = FenceLayer::new(fence.clone()).layer(inner);
    let mut future = Box::pin(service.call(request));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    assert_eq!(fence.totals().waiting, 1);
    drop(future);
    assert_eq!(fence.totals().waiting, 0);
    assert!(passage.facts().admission.is_none());
}
