//! What the programs of `corpora/programs` come to, computed a second time from what the heads of
//! their files say: each function takes the amount of work and gives the checksum and the results.

use std::collections::HashMap;

/// What a program leaves behind.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// In RAX.
    pub(crate) checksum: u64,
    /// The first of the results; those that follow are not looked at.
    pub(crate) results: Vec<u64>,
}

fn expected(checksum: u64, results: &[u64]) -> Expected {
    Expected { checksum, results: results.to_vec() }
}

/// `next_random` of `common.h`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn words(&mut self, count: usize) -> Vec<u64> {
        (0..count).map(|_| self.next()).collect()
    }

    fn bytes(&mut self, words: usize) -> Vec<u8> {
        self.words(words).into_iter().flat_map(u64::to_le_bytes).collect()
    }
}

/// `mix` of `common.h`.
fn mix(checksum: u64, value: u64) -> u64 {
    let product = (checksum ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

fn mix_all(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0, mix)
}

pub(crate) fn sha256(work: u64) -> Expected {
    let digest = sha256_digest(&Random(1).bytes(1 << 17).repeat(work as usize));
    let words: Vec<u64> =
        digest.chunks(2).map(|pair| u64::from(pair[0]) << 32 | u64::from(pair[1])).collect();
    expected(words[0], &words)
}

/// FIPS 180-4; its constants are the fractions of the roots of the first primes.
pub(crate) fn sha256_digest(message: &[u8]) -> [u32; 8] {
    let primes: Vec<u128> =
        (2..312).filter(|&n| (2..n).all(|divisor| n % divisor != 0)).take(64).collect();
    let root = |number: u128, power: u32| {
        (0..48).rev().fold(0_u128, |root, bit| {
            let larger = root | 1 << bit;
            if larger.checked_pow(power).is_some_and(|it| it <= number) { larger } else { root }
        }) as u32
    };
    let constants: Vec<u32> = primes.iter().map(|prime| root(prime << 96, 3)).collect();
    let mut hash: [u32; 8] = std::array::from_fn(|index| root(primes[index] << 64, 2));
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    padded.chunks(64).for_each(|block| sha256_block(&mut hash, &constants, block));
    hash
}

fn sha256_block(hash: &mut [u32; 8], constants: &[u32], block: &[u8]) {
    let rotations =
        |word: u32, by: [u32; 3]| by.into_iter().fold(0, |sum, by| sum ^ word.rotate_right(by));
    let mut w: Vec<u32> =
        block.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
    for t in 16..64 {
        let low = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ w[t - 15] >> 3;
        let high = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ w[t - 2] >> 10;
        w.push(w[t - 16].wrapping_add(low).wrapping_add(w[t - 7]).wrapping_add(high));
    }
    let mut v = *hash;
    for (constant, word) in constants.iter().zip(w) {
        let [a, b, c, _, e, f, g, h] = v;
        let first = [rotations(e, [6, 11, 25]), e & f ^ !e & g, *constant, word]
            .into_iter()
            .fold(h, u32::wrapping_add);
        let second = rotations(a, [2, 13, 22]).wrapping_add(a & b ^ a & c ^ b & c);
        v.rotate_right(1);
        v[4] = v[4].wrapping_add(first);
        v[0] = first.wrapping_add(second);
    }
    hash.iter_mut().zip(v).for_each(|(hash, word)| *hash = hash.wrapping_add(word));
}

pub(crate) fn quicksort(work: u64) -> Expected {
    let mut random = Random(2);
    let mut checksum = 0;
    for _ in 0..work {
        let mut numbers = random.words(100_000);
        numbers.iter_mut().for_each(|number| *number >>= 32);
        numbers.sort_unstable();
        checksum = numbers.into_iter().fold(checksum, mix);
    }
    expected(checksum, &[0])
}

/// Without fused multiplication and addition.
pub(crate) fn matrix(work: u64) -> Expected {
    const SIZE: usize = 256;
    let mut random = Random(3);
    let (mut left, mut right) = (vec![0_f32; SIZE * SIZE], vec![0_f32; SIZE * SIZE]);
    let mut number = || (random.next() >> 32) as i32 as f32 / 2_147_483_648.0;
    for (left, right) in left.iter_mut().zip(&mut right) {
        (*left, *right) = (number(), number());
    }
    let (mut checksum, mut first) = (0, 0);
    for round in 0..work as usize {
        left[round % SIZE * SIZE + round * 7 % SIZE] += 0.625;
        let mut product = vec![0_f32; SIZE * SIZE];
        for (row, sums) in left.chunks(SIZE).zip(product.chunks_mut(SIZE)) {
            for (factor, line) in row.iter().zip(right.chunks(SIZE)) {
                sums.iter_mut().zip(line).for_each(|(sum, value)| *sum += factor * value);
            }
        }
        let bits = |pair: &[f32]| u64::from(pair[1].to_bits()) << 32 | u64::from(pair[0].to_bits());
        checksum = product.chunks(2).map(bits).fold(checksum, mix);
        first = bits(&product[..2]);
    }
    expected(checksum, &[first])
}

pub(crate) fn interpreter(work: u64) -> Expected {
    // The first, the last two, and of each number four: MOVE, IF_ONE, ADD_NUMBER and IF_LESS.
    let (mut executed, mut sum) = (3, 0);
    for start in 1..=work {
        let mut number = start;
        executed += 4;
        while number != 1 {
            let odd = number % 2 == 1;
            number = if odd { 3 * number + 1 } else { number / 2 };
            sum += 1;
            // ADD_NUMBER, IF_ODD, HALVE or TRIPLE, GO; and IF_ONE, but after TRIPLE.
            executed += if odd { 4 } else { 5 };
        }
    }
    expected(sum, &[executed])
}

pub(crate) fn alu(work: u64) -> Expected {
    let (mut a, mut b, mut c) = (1_u64, 2_u64, 3_u64);
    for i in 0..work {
        a ^= a << 13;
        a ^= a >> 7;
        b = b.wrapping_add(a).rotate_left(5);
        c ^= b.wrapping_add(i);
        a = a.wrapping_add(c >> 3);
    }
    expected(mix(mix(a, b), c), &[])
}

pub(crate) fn load_store(work: u64) -> Expected {
    let word = (0..work).sum::<u64>();
    expected(mix_all((0..4096).map(|index| word + index)), &[])
}

pub(crate) fn fib(work: u64) -> Expected {
    let (mut now, mut next) = ((0_u64, 1_u64), (1_u64, 1_u64));
    for _ in 0..work {
        (now, next) = (next, (now.0 + next.0, now.1 + next.1 + 1));
    }
    expected(now.0, &[now.1])
}

pub(crate) fn crc32(work: u64) -> Expected {
    let message = Random(4).bytes(8192).repeat(work as usize);
    expected(u64::from(crc32_of(&message)), &[])
}

/// Bit by bit.
pub(crate) fn crc32_of(message: &[u8]) -> u32 {
    !message.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0xedb8_8320))
    })
}

pub(crate) fn string_search(work: u64) -> Expected {
    let mut random = Random(5);
    let mut letters =
        |count: usize| -> Vec<u8> { (0..count).map(|_| (random.next() >> 62) as u8).collect() };
    let text = letters(65_536);
    let mut places = Vec::new();
    for round in 0..work as usize {
        let pattern = letters(2 + round % 8);
        let windows = text.windows(pattern.len()).enumerate();
        places.extend(windows.filter(|(_, it)| *it == pattern).map(|(place, _)| place as u64));
    }
    let count = places.len() as u64;
    expected(mix_all(places), &[count])
}

pub(crate) fn hash_table(work: u64) -> Expected {
    let mut random = Random(6);
    let mut table: HashMap<u64, u64> = HashMap::new();
    let (mut checksum, mut found) = (0, 0);
    for _ in 0..work {
        let bits = random.next();
        let key = 1 + (bits >> 49);
        if bits & 1 != 0 {
            let value = table.entry(key).or_default();
            *value = value.wrapping_add(bits);
        } else if bits & 2 != 0 {
            found += u64::from(table.contains_key(&key));
            checksum = mix(checksum, table.get(&key).copied().unwrap_or_default());
        } else {
            table.remove(&key);
        }
    }
    let products = table.iter().map(|(key, value)| key.wrapping_mul(*value));
    let sum = products.fold(0, u64::wrapping_add);
    expected(mix(checksum, sum), &[table.len() as u64, found])
}

pub(crate) fn pointer_chase(work: u64) -> Expected {
    const NODES: usize = 16_384;
    let mut random = Random(7);
    let mut order: Vec<usize> = Vec::new();
    for index in 0..NODES {
        let other = (random.next() >> 32) as usize % (index + 1);
        order.push(index);
        order.swap(index, other);
    }
    let start = order.iter().position(|&node| node == 0).unwrap();
    let passed = (1..=work as usize).map(|step| order[(start + step) % NODES] as u64);
    let (node, sum) = passed.fold((0, 0), |(_, sum), node| (node, sum + node));
    expected(mix(node, sum), &[])
}

pub(crate) fn rep_movs(work: u64) -> Expected {
    const MOST: usize = 8192;
    let mut random = Random(8);
    let mut data = random.bytes(8192);
    let places = (data.len() - MOST) as u64;
    let mut results = [0; 3];
    for _ in 0..work {
        let bits = random.next();
        let count = bits as usize % (MOST / 8);
        let (to, from) = ((bits >> 16) % places, (bits >> 40) % places);
        let (to, from) = (to as usize, from as usize);
        match bits >> 61 {
            0 | 1 => results[0] += copy(&mut data, to, from, count, 1),
            2 => results[0] += copy(&mut data, to, from, count, 8),
            3 => {
                let backwards = |index: usize| index + MOST - 2;
                results[0] += copy(&mut data, backwards(to), backwards(from), count, -2);
            }
            4 => data[to..][..count / 8 * 8]
                .chunks_mut(8)
                .for_each(|word| word.copy_from_slice(&bits.to_le_bytes())),
            5 => results[0] += copy(&mut data, to + 1, to, count / 8, 1),
            6 => {
                let hit = data[to..][..count].iter().position(|&byte| byte == bits as u8);
                results[1] += hit.map_or(count, |index| index + 1) as u64;
            }
            _ => {
                copy(&mut data, to, from, count, 1);
                let mut pairs = data[to..][..MOST].chunks(4).zip(data[from..].chunks(4));
                let hit = pairs.position(|(to, from)| to != from);
                results[2] += 4 * hit.map_or(MOST / 4, |index| index + 1) as u64;
            }
        }
    }
    let words = data.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let checksum = results.into_iter().fold(mix_all(words), mix);
    expected(checksum, &results)
}

/// Copies `count` elements, one after the other, and says how many bytes these are. Elements have as
/// many bytes as `step` says, which is negative for a copy towards lower addresses.
fn copy(data: &mut [u8], to: usize, from: usize, count: usize, step: isize) -> u64 {
    let size = step.unsigned_abs();
    for index in 0..count as isize {
        let place = |start: usize| start.strict_add_signed(index * step);
        data.copy_within(place(from)..place(from) + size, place(to));
    }
    (count * size) as u64
}

pub(crate) fn virtual_calls(work: u64) -> Expected {
    let mut random = Random(9);
    let mut objects: Vec<(u64, u64)> = (0..1024).map(|_| (random.next() >> 62, 0)).collect();
    let mut argument = 1_u64;
    for round in 0..work {
        for (kind, value) in &mut objects {
            (*value, argument) = match *kind + (round & 1) {
                0 => (value.wrapping_add(argument), value.wrapping_add(argument)),
                1 => (value.rotate_left(7) ^ argument, value.rotate_left(7) ^ argument),
                2 => {
                    let product = value.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(argument);
                    (product, product)
                }
                3 => (value.wrapping_add(1), argument),
                _ => ((!*value).wrapping_sub(argument), (!*value).wrapping_sub(argument)),
            };
        }
    }
    let checksum = mix_all(objects.into_iter().map(|(_, value)| value));
    expected(mix(checksum, argument), &[])
}

pub(crate) fn selfmod(work: u64) -> Expected {
    let mut random = Random(10);
    let (mut value, mut operation) = (0_u64, 0);
    for _ in 0..work {
        let bits = random.next();
        value = match operation {
            0 => value.wrapping_add(bits),
            1 => value.wrapping_sub(bits),
            2 => value ^ bits,
            _ => value | bits,
        };
        value = value.wrapping_add(bits as i32 as u64);
        operation = bits >> 40 & 3;
        if bits >> 42 & 1 == 0 {
            value = value.wrapping_add(1);
        }
        value = value.rotate_left((bits >> 32) as u32 & 63);
    }
    expected(value, &[])
}

pub(crate) fn jit_guest(work: u64) -> Expected {
    let mut random = Random(11);
    let (mut value, mut written) = (0_u64, 0);
    for _ in 0..work {
        let count = 1 + random.next() % 32;
        let instructions = random.words(count as usize);
        let lengths = instructions.iter().map(|bits| [6, 6, 6, 7, 4, 7, 3, 3][*bits as usize & 7]);
        written += 4 + lengths.sum::<u64>();
        for call in 0..3 {
            let argument = value.wrapping_add(call);
            value = instructions.iter().fold(argument, |a, bits| generated(a, argument, *bits));
        }
    }
    expected(value, &[written])
}

/// What the instruction made of `bits` does to RAX.
fn generated(rax: u64, argument: u64, bits: u64) -> u64 {
    let number = (bits as i64 >> 32) as u64;
    match bits & 7 {
        0 => rax.wrapping_add(number),
        1 => rax.wrapping_sub(number),
        2 => rax ^ number,
        3 => rax.wrapping_mul(number | 1),
        4 => rax.rotate_left(11),
        5 => rax.wrapping_add(rax & 1),
        6 => rax.wrapping_add(argument),
        _ => !rax,
    }
}
