//! Eigenvalues and eigenvectors of a symmetric matrix: reduced to three diagonals by reflections, then QL steps with shifts
//! (Golub and Van Loan, *Matrix Computations*, chapter 8).

/// QL steps for one eigenvalue; two or three are usual.
const MAX_STEPS: usize = 60;

/// Eigenvalues, largest first, and for each its eigenvector of length 1, as rows; the element of largest size of every
/// vector is positive, so that equal matrices give equal vectors. `matrix: [n, n]`, of which the lower half is read.
///
/// `None` if it holds what is not a number.
#[expect(clippy::needless_range_loop, reason = "rows and columns of one matrix are told apart by their numbers")]
pub fn symmetric_eigen(matrix: &[f64], n: usize) -> Option<(Vec<f64>, Vec<Vec<f64>>)> {
    assert_eq!(matrix.len(), n * n, "the matrix is square");
    if n == 0 || matrix.iter().any(|value| !value.is_finite()) {
        return (n == 0).then(Default::default);
    }
    let mut a: Vec<Vec<f64>> = matrix.chunks_exact(n).map(<[f64]>::to_vec).collect();
    for row in 0..n {
        for col in row + 1..n {
            a[row][col] = a[col][row];
        }
    }
    // Row k of `vectors` becomes the k-th eigenvector: it starts as row k of Qᵀ, where A = Q T Qᵀ.
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(a);
    solve(&mut diagonal, &mut beside, &mut vectors)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|x, y| diagonal[*y].total_cmp(&diagonal[*x]));
    let oriented = |at: usize| {
        let mut vector = std::mem::take(&mut vectors[at]);
        let largest = vector.iter().fold(0.0f64, |best, value| if value.abs() > best.abs() { *value } else { best });
        if largest < 0.0 {
            vector.iter_mut().for_each(|value| *value = -*value);
        }
        vector
    };
    let values = order.iter().map(|at| diagonal[*at]).collect();
    Some((values, order.iter().copied().map(oriented).collect()))
}

/// Diagonal, what stands beside it, and Qᵀ, by one reflection a column.
#[expect(clippy::needless_range_loop, reason = "rows and columns of one matrix are told apart by their numbers")]
fn tridiagonal(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let n = a.len();
    let mut q: Vec<Vec<f64>> = (0..n).map(|row| (0..n).map(|col| f64::from(u8::from(row == col))).collect()).collect();
    for k in 0..n.saturating_sub(2) {
        // v with H = 1 − 2vvᵀ (|v| = 1), which turns the column below the diagonal into its first element.
        let mut v: Vec<f64> = (k + 1..n).map(|row| a[row][k]).collect();
        let norm = length(&v);
        if norm == 0.0 {
            continue;
        }
        v[0] += norm.copysign(v[0]);
        let size = length(&v);
        v.iter_mut().for_each(|value| *value /= size);
        // A ← H A H on the trailing block: A − v wᵀ − w vᵀ with w = 2(Av − (vᵀAv) v).
        let mut w: Vec<f64> = (k + 1..n).map(|row| dot(&a[row][k + 1..], &v)).collect();
        let inner = dot(&w, &v);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w = 2.0 * (*w - inner * v));
        for (i, row) in a[k + 1..].iter_mut().enumerate() {
            for (j, value) in row[k + 1..].iter_mut().enumerate() {
                *value -= v[i] * w[j] + w[i] * v[j];
            }
        }
        let edge = -norm.copysign(a[k + 1][k]);
        for row in k + 1..n {
            let value = if row == k + 1 { edge } else { 0.0 };
            (a[row][k], a[k][row]) = (value, value);
        }
        // Qᵀ ← H Qᵀ
        let mut sums = vec![0.0; n];
        for (row, v) in q[k + 1..].iter().zip(&v) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += v * value);
        }
        for (row, v) in q[k + 1..].iter_mut().zip(&v) {
            row.iter_mut().zip(&sums).for_each(|(value, sum)| *value -= 2.0 * v * sum);
        }
    }
    let diagonal = (0..n).map(|at| a[at][at]).collect();
    let beside = (1..n).map(|at| a[at][at - 1]).chain([0.0]).collect();
    (diagonal, beside, q)
}

/// QL steps until nothing stands beside the diagonal; the turns are applied to the rows of `vectors`.
fn solve(d: &mut [f64], e: &mut [f64], vectors: &mut [Vec<f64>]) -> Option<()> {
    let n = d.len();
    for low in 0..n {
        for step in 0.. {
            let small = |at: usize| e[at].abs() <= f64::EPSILON * (d[at].abs() + d[at + 1].abs());
            let high = (low..n - 1).find(|at| small(*at)).unwrap_or(n - 1);
            if high == low {
                break;
            }
            if step == MAX_STEPS {
                return None;
            }
            // The eigenvalue of the leading 2 × 2 block that is nearer to d[low].
            let half = (d[low + 1] - d[low]) / (2.0 * e[low]);
            let shift = d[low] - e[low] / (half + half.hypot(1.0).copysign(half));
            let (mut sine, mut cosine, mut carried) = (1.0, 1.0, 0.0);
            let mut lead = d[high] - shift;
            let mut ended_early = false;
            for at in (low..high).rev() {
                let (bulge, edge) = (sine * e[at], cosine * e[at]);
                let radius = bulge.hypot(lead);
                e[at + 1] = radius;
                if radius == 0.0 {
                    d[at + 1] -= carried;
                    e[high] = 0.0;
                    ended_early = true;
                    break;
                }
                (sine, cosine) = (bulge / radius, lead / radius);
                let base = d[at + 1] - carried;
                let mixed = (d[at] - base) * sine + 2.0 * cosine * edge;
                carried = sine * mixed;
                d[at + 1] = base + carried;
                lead = cosine * mixed - edge;
                let (before, after) = vectors.split_at_mut(at + 1);
                for (x, y) in before[at].iter_mut().zip(after[0].iter_mut()) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
            if !ended_early {
                d[low] -= carried;
                e[low] = lead;
                e[high] = 0.0;
            }
        }
    }
    Some(())
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn length(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(matrix: &[f64], n: usize) -> Vec<f64> {
        let (values, vectors) = symmetric_eigen(matrix, n).expect("numbers");
        let size = matrix.iter().fold(1e-300f64, |size, value| size.max(value.abs()));
        for (k, (value, vector)) in values.iter().zip(&vectors).enumerate() {
            for row in 0..n {
                let image = dot(&matrix[row * n..][..n], vector);
                assert!((image - value * vector[row]).abs() < 1e-11 * size * n as f64, "vector {k} of {n}: {image} for {}", value * vector[row]);
            }
            for (j, other) in vectors.iter().enumerate() {
                let expected = f64::from(u8::from(j == k));
                assert!((dot(vector, other) - expected).abs() < 1e-11, "vectors {k} and {j} of {n}");
            }
        }
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
        values
    }

    #[test]
    fn known_matrices() {
        assert_eq!(check(&[3.0], 1), [3.0]);
        let values = check(&[2.0, 1.0, 1.0, 2.0], 2);
        assert!((values[0] - 3.0).abs() < 1e-14 && (values[1] - 1.0).abs() < 1e-14);
        // 2 on the diagonal, −1 beside it: 2 − 2 cos(kπ / (n + 1)).
        let n = 17;
        let second: Vec<f64> = (0..n * n).map(|at: usize| match (at / n).abs_diff(at % n) { 0 => 2.0, 1 => -1.0, _ => 0.0 }).collect();
        for (k, value) in check(&second, n).iter().rev().enumerate() {
            let expected = 2.0 - 2.0 * (std::f64::consts::PI * (k + 1) as f64 / (n + 1) as f64).cos();
            assert!((value - expected).abs() < 1e-13, "{value} {expected}");
        }
    }

    #[test]
    fn any_symmetric_matrix_repeated_values_and_zeros_included() {
        for n in [2usize, 3, 5, 24, 61] {
            let x: Vec<f64> = (0..n * n).map(|at| ((at * at * 37 + at * 11) % 101) as f64 / 50.0 - 1.0).collect();
            let gram = |rank: usize| -> Vec<f64> {
                let row = |at: usize| &x[at * n..][..rank];
                (0..n * n).map(|at| dot(row(at / n), row(at % n))).collect()
            };
            check(&gram(n), n);
            let values = check(&gram(n.div_ceil(3)), n);
            assert!(values[n - 1].abs() < 1e-10, "of low rank");
            check(&vec![0.0; n * n], n);
            check(&(0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect::<Vec<_>>(), n);
        }
    }

    #[test]
    fn what_is_not_a_number_is_told() {
        assert!(symmetric_eigen(&[1.0, f64::NAN, f64::NAN, 1.0], 2).is_none());
    }
}
