//! Questions under way to other servers: one at a time for each name and type. Whoever asks the same meanwhile gets the same
//! answer; whoever asks with other flags or options waits for his turn. So a forger has one question to hit, however often
//! it is provoked (the birthday attack of RFC 5452, section 5).

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use overlay_services::Question;
use tokio::sync::{Mutex, OnceCell};

/// What one client may have under way of one question: as most resolvers ask, and once more in another way.
const MAX_OF_CLIENT: usize = 2;

/// An answer, once there is one; none: nobody gave one.
pub(super) type Shared = Rc<OnceCell<Option<Vec<u8>>>>;

/// All that is under way.
#[derive(Debug, Default)]
pub(super) struct Flights(RefCell<HashMap<Question, Flight>>);

#[derive(Debug, Default)]
struct Flight {
    turn: Rc<Mutex<()>>,
    /// By everything that decides about the answer.
    variants: HashMap<Vec<u8>, Variant>,
}

#[derive(Debug)]
struct Variant {
    first: IpAddr,
    waiting: usize,
    answer: Shared,
}

/// A place among those who wait for an answer.
pub(super) struct Seat<'a> {
    flights: &'a Flights,
    question: Question,
    essence: Vec<u8>,
    /// Held while the question is under way.
    pub(super) turn: Rc<Mutex<()>>,
    /// Where the answer comes.
    pub(super) answer: Shared,
}

impl Flights {
    /// A place for a client's question; `None` when it has too many of them under way.
    pub(super) fn board(&self, question: Question, essence: Vec<u8>, client: IpAddr) -> Option<Seat<'_>> {
        let mut flights = self.0.borrow_mut();
        let flight = flights.entry(question.clone()).or_default();
        if !flight.variants.contains_key(&essence)
            && flight.variants.values().filter(|variant| variant.first == client).count() >= MAX_OF_CLIENT
        {
            return None;
        }
        let fresh = || Variant { first: client, waiting: 0, answer: Shared::default() };
        let variant = flight.variants.entry(essence.clone()).or_insert_with(fresh);
        variant.waiting += 1;
        let (turn, answer) = (Rc::clone(&flight.turn), Rc::clone(&variant.answer));
        Some(Seat { flights: self, question, essence, turn, answer })
    }
}

impl Seat<'_> {
    /// Nobody more is to get this answer: it is there, and who asks from now on asks anew.
    fn leave(&self) {
        let mut flights = self.flights.0.borrow_mut();
        let Some(flight) = flights.get_mut(&self.question) else { return };
        if let Some(variant) = flight.variants.get_mut(&self.essence)
            && Rc::ptr_eq(&variant.answer, &self.answer)
        {
            variant.waiting -= 1;
            if variant.waiting == 0 || self.answer.initialized() {
                flight.variants.remove(&self.essence);
            }
        }
        if flight.variants.is_empty() {
            flights.remove(&self.question);
        }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Question {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x03org\x00\x00\x01\x00\x01";
        overlay_services::question(query).unwrap().1
    }

    #[test]
    fn same_questions_share_an_answer_and_others_a_turn() {
        let (flights, [one, two]) = (Flights::default(), ["10.42.1.4", "10.42.1.5"].map(|ip| ip.parse().unwrap()));
        let first = flights.board(asked(), vec![1], one).unwrap();
        let same = flights.board(asked(), vec![1], two).unwrap();
        let other = flights.board(asked(), vec![2], one).unwrap();
        assert!(Rc::ptr_eq(&first.answer, &same.answer) && !Rc::ptr_eq(&first.answer, &other.answer));
        assert!(Rc::ptr_eq(&first.turn, &other.turn));
        // One client cannot make a queue; another one is served all the same.
        assert!(flights.board(asked(), vec![3], one).is_none());
        let third = flights.board(asked(), vec![3], two).unwrap();
        // Who comes after the answer asks anew, in his turn.
        first.answer.set(Some(vec![7])).unwrap();
        drop(first);
        let later = flights.board(asked(), vec![1], two).unwrap();
        assert!(!Rc::ptr_eq(&later.answer, &same.answer) && Rc::ptr_eq(&later.turn, &same.turn));
        drop((same, other, third, later));
        assert!(flights.0.borrow().is_empty());
    }
}
