//! [`State`]: what is known about the host's registers and the vCPU's block at one point of emitted
//! code. Values are sums of symbols: a symbol stands for a value that is not known but does not
//! change, so that two equal sums are equal values, modulo 2^64.

use std::collections::{BTreeMap, HashMap};

/// A value that is not known.
pub(crate) type Symbol = u32;

/// A sum of symbols with factors, and a constant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct Form {
    terms: Vec<(Symbol, u64)>,
    pub(crate) constant: u64,
}

impl Form {
    pub(crate) fn constant(constant: u64) -> Self {
        Self { terms: Vec::new(), constant }
    }

    pub(crate) fn symbol(symbol: Symbol) -> Self {
        Self { terms: vec![(symbol, 1)], constant: 0 }
    }

    /// The symbol that this is, if it is nothing else.
    pub(crate) fn as_symbol(&self) -> Option<Symbol> {
        match (self.terms.as_slice(), self.constant) {
            ([(symbol, 1)], 0) => Some(*symbol),
            _ => None,
        }
    }

    pub(crate) fn as_constant(&self) -> Option<u64> {
        self.terms.is_empty().then_some(self.constant)
    }

    pub(crate) fn symbols(&self) -> impl Iterator<Item = Symbol> {
        self.terms.iter().map(|(symbol, _)| *symbol)
    }

    /// The sum of this and `factor` times `other`.
    pub(crate) fn plus(&self, other: &Self, factor: u64) -> Self {
        let mut terms: BTreeMap<Symbol, u64> = self.terms.iter().copied().collect();
        for (symbol, count) in &other.terms {
            let sum = terms.entry(*symbol).or_default();
            *sum = sum.wrapping_add(count.wrapping_mul(factor));
        }
        let terms = terms.into_iter().filter(|(_, count)| *count != 0).collect();
        let constant = self.constant.wrapping_add(other.constant.wrapping_mul(factor));
        Self { terms, constant }
    }

    pub(crate) fn plus_constant(&self, constant: u64) -> Self {
        Self { terms: self.terms.clone(), constant: self.constant.wrapping_add(constant) }
    }

    /// Between what numbers this is, taken as signed, if all its symbols have bounds.
    fn bounds(&self, symbols: &Symbols) -> Option<(i128, i128)> {
        let constant = i128::from(self.constant as i64);
        self.terms.iter().try_fold((constant, constant), |(low, high), (symbol, factor)| {
            let (least, most) = symbols.origin(*symbol).bounds()?;
            let factor = i128::from(*factor as i64);
            let ends = [factor * i128::from(least), factor * i128::from(most)];
            Some((low + ends[0].min(ends[1]), high + ends[0].max(ends[1])))
        })
    }
}

/// What a symbol is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Origin {
    /// The word at this offset of the block when translated code was entered.
    Slot(i32),
    /// Rotated right by so many bits.
    Rotated(Form, u8),
    /// The low 16 bits.
    Low16(Form),
    /// So many low bits, sign-extended.
    Signed(Form, u8),
    /// Shifted right by so many bits, with the sign.
    Shifted(Form, u8),
    /// RSI or RDI after a string instruction that began with it in terms of the host.
    Relocated(u32),
    /// Whatever.
    Unknown(u32),
    /// Whatever between these numbers.
    Between(u32, i64, i64),
}

impl Origin {
    /// The least and the most that it can be.
    fn bounds(&self) -> Option<(i64, i64)> {
        match self {
            Self::Low16(_) => Some((0, 0xffff)),
            Self::Signed(_, bits) => Some((-1 << (bits - 1), (1 << (bits - 1)) - 1)),
            Self::Between(_, least, most) => Some((*least, *most)),
            _ => None,
        }
    }
}

/// All symbols of a block.
#[derive(Default)]
pub(crate) struct Symbols {
    origins: Vec<Origin>,
    known: HashMap<Origin, Symbol>,
}

impl Symbols {
    /// The symbol of this origin.
    pub(crate) fn of(&mut self, origin: Origin) -> Form {
        let next = self.origins.len() as Symbol;
        let symbol = *self.known.entry(origin.clone()).or_insert(next);
        if symbol == next {
            self.origins.push(origin);
        }
        Form::symbol(symbol)
    }

    /// A symbol that is like no other.
    pub(crate) fn unknown(&mut self) -> Form {
        let number = self.origins.len() as u32;
        self.of(Origin::Unknown(number))
    }

    /// A symbol that is like no other, with bounds.
    pub(crate) fn between(&mut self, least: i64, most: i64) -> Form {
        let number = self.origins.len() as u32;
        self.of(Origin::Between(number, least, most))
    }

    pub(crate) fn relocated(&mut self) -> Form {
        let number = self.origins.len() as u32;
        self.of(Origin::Relocated(number))
    }

    pub(crate) fn origin(&self, symbol: Symbol) -> &Origin {
        &self.origins[symbol as usize]
    }

    /// What `form` is made of, if it is one symbol.
    pub(crate) fn origin_of(&self, form: &Form) -> Option<&Origin> {
        Some(self.origin(form.as_symbol()?))
    }
}

/// The furthest from zero that translated code takes a value to be that it knows to be small.
pub(crate) const MOST_SMALL: i64 = (1 << 32) + (1 << 30);

/// What may hold at the start of each pass of a loop, of guest registers as [`State::guest`] numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// It is near the window.
    Near(usize),
    /// The sum of a base and an index times a scale is.
    NearSum(Option<usize>, usize, u64),
    /// It is no further from zero than [`MOST_SMALL`].
    Small(usize),
}

/// Where the guest's R14 and R15 are.
const IN_BLOCK: [i32; 2] = [14 * 8, 15 * 8];

/// Registers that [`State::guest`] knows.
pub(crate) const GUEST_REGISTERS: usize = 18;

/// See the file's head.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) registers: [Form; 16],
    /// Words of the block by offset, as far as they are known.
    pub(crate) slots: BTreeMap<i32, Form>,
    /// Addresses that lie in the window, or at most so many bytes from it.
    pub(crate) near: Vec<(Form, u64)>,
    /// A poll came since the last jump backwards could have come here.
    pub(crate) polled: bool,
}

impl State {
    pub(crate) fn new(symbols: &mut Symbols) -> Self {
        let registers = std::array::from_fn(|_| symbols.unknown());
        Self { registers, slots: BTreeMap::new(), near: Vec::new(), polled: false }
    }

    pub(crate) fn slot(&mut self, offset: i32, symbols: &mut Symbols) -> Form {
        let initial = || symbols.of(Origin::Slot(offset));
        self.slots.entry(offset).or_insert_with(initial).clone()
    }

    /// How far an address may be from a window of 2^`bits` bytes, as far as that is known.
    pub(crate) fn distance(&self, address: &Form, bits: u32, symbols: &Symbols) -> Option<u64> {
        let furthest = |(low, high): (i128, i128)| (-low).max(high).max(0) as u64;
        let distances = self.near.iter().filter_map(|(other, most)| {
            let between = address.plus(other, u64::MAX).bounds(symbols)?;
            Some(furthest(between).saturating_add(*most))
        });
        let by_itself =
            address.bounds(symbols).map(|(low, high)| furthest((low, high - (1 << bits))));
        distances.chain(by_itself).min()
    }

    /// Whether a value is small, as translated code may take it to be.
    pub(crate) fn is_small(&self, value: &Form, symbols: &Symbols) -> bool {
        let most = i128::from(MOST_SMALL);
        value.bounds(symbols).is_some_and(|(low, high)| -most <= low && high <= most)
    }

    /// An address in the window.
    pub(crate) fn note(&mut self, address: Form) {
        self.near.push((address, 0));
    }

    /// Guest registers, wherever they are: 0 to 15 for the host's, then those in the block.
    pub(crate) fn guest(&mut self, number: usize, symbols: &mut Symbols) -> Form {
        match number.checked_sub(16) {
            Some(index) => self.slot(IN_BLOCK[index], symbols),
            None => self.registers[number].clone(),
        }
    }

    /// A state of which nothing is known but some facts of guest registers.
    pub(crate) fn unknown(&self, facts: &[Fact], most: u64, symbols: &mut Symbols) -> Self {
        let mut state = Self::new(symbols);
        // What code writes to may be anything; the rest is as it was.
        for offset in self.slots.keys() {
            if !crate::fields::allowed(i64::from(*offset), 8, true) {
                state.slots.insert(*offset, symbols.of(Origin::Slot(*offset)));
            } else {
                state.slots.insert(*offset, symbols.unknown());
            }
        }
        for offset in IN_BLOCK {
            state.slots.insert(offset, symbols.unknown());
        }
        for fact in facts {
            if let Fact::Small(number) = fact {
                let small = symbols.between(-MOST_SMALL, MOST_SMALL);
                state.set_guest(*number, small);
            }
        }
        for fact in facts {
            if let Some(sum) = state.sum(fact, symbols) {
                state.near.push((sum, most));
            }
        }
        state
    }

    fn set_guest(&mut self, number: usize, value: Form) {
        match number.checked_sub(16) {
            Some(index) => drop(self.slots.insert(IN_BLOCK[index], value)),
            None => self.registers[number] = value,
        }
    }

    /// The sum that a fact says is near.
    pub(crate) fn sum(&mut self, fact: &Fact, symbols: &mut Symbols) -> Option<Form> {
        match *fact {
            Fact::Near(number) => Some(self.guest(number, symbols)),
            Fact::NearSum(base, index, scale) => {
                let none = Form::constant(0);
                let base = base.map_or(none, |base| self.guest(base, symbols));
                Some(base.plus(&self.guest(index, symbols), scale))
            }
            Fact::Small(_) => None,
        }
    }

    /// What holds in both of two states.
    pub(crate) fn join(&self, other: &Self, symbols: &mut Symbols) -> Self {
        let mut both = self.clone();
        for (register, theirs) in both.registers.iter_mut().zip(&other.registers) {
            if register != theirs {
                *register = symbols.unknown();
            }
        }
        // A slot that only one of them has read is as it was at the start.
        for offset in self.slots.keys().chain(other.slots.keys()) {
            let start = symbols.of(Origin::Slot(*offset));
            let ours = self.slots.get(offset).unwrap_or(&start);
            let theirs = other.slots.get(offset).unwrap_or(&start);
            let joined = if ours == theirs { ours.clone() } else { symbols.unknown() };
            both.slots.insert(*offset, joined);
        }
        both.near.retain(|address| other.near.contains(address));
        both.polled &= other.polled;
        both
    }
}
