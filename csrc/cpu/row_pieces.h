// The pieces of long rows: brought in and measured, and what they are together.
#pragma once

#include "../row.h"
#include "reader.h"
#include "row_output.h"

namespace anl::cpu {

template <class A> A exp_of(A x) { return exp_nonpositive<A>(fill(x))[0]; }

// The others of a row.
template <class A> struct Merged {
  A max, min; // of z
  A mass, count;

  A m() const { return count > 0 ? max : A(-INFINITY); }
};

template <class A> Merged<A> merged(const Partials<A>* pieces, int64_t num_pieces) {
  A top = lowest<A>, bottom = INFINITY;
  double count = 0, mass = 0;
  for (int64_t c = 0; c < num_pieces; ++c) {
    const Partials<A>& s = pieces[c];
    top = s.max > top ? s.max : top;
    bottom = s.min < bottom ? s.min : bottom;
    count += s.count;
  }
  for (int64_t c = 0; c < num_pieces; ++c)
    mass += double(pieces[c].mass) * exp_of(pieces[c].max - top);
  return {top, bottom, A(mass), A(count)};
}

// The sum of z - m over the others.
template <class A> A total_about(A m, const Partials<A>* pieces, int64_t num_pieces) {
  double total = 0;
  for (int64_t c = 0; c < num_pieces; ++c) {
    const Partials<A>& s = pieces[c];
    total += s.total + double(s.count) * (double(s.max) - m);
  }
  return A(total);
}

template <class A> Softmax<A> softmax_of(A m_others, A mass, A z_y) {
  const Softmax<V<A>> s = normalise(fill(m_others), fill(mass), fill(z_y));
  return {s.m[0], s.log_s[0], s.l_y[0], s.p_y[0], s.rest[0]};
}

template <class A> struct Best {
  int64_t place;
  A z;
};

// The largest of the others, the first of equals; `best` has each piece's own.
template <class A> Best<A> best_of(const Partials<A>* pieces, const int* best, const Cut<A>& cut) {
  int64_t piece = 0;
  for (int64_t c = 1; c < cut.count(); ++c)
    piece = pieces[c].max > pieces[piece].max ? c : piece;
  return {cut.start(piece) + best[piece], pieces[piece].max};
}

template <class T> class PieceReader : public Reader<T> {
public:
  using typename Reader<T>::A;
  explicit PieceReader(const RowArgs& args)
      : Reader<T>(args), cut(args.shape.K), logits_(args.logits) {}

  T* at(const Rows& rows, int64_t n, int64_t piece) const {
    return this->row(rows, n) + cut.start(piece) * rows.cls;
  }
  const T* logits(int64_t n, int64_t piece, T* buffer) const {
    return gathered(at(logits_, n, piece), logits_.cls, cut.size(piece), buffer);
  }

  // The partials of a piece, and its e; also the place of its maximum, if that is wanted.
  Partials<A> measure(int64_t n, int64_t piece, const Label& label, T* buffer, A* e,
                      int* best) const {
    const int size = cut.size(piece), y = cut.place(label.y, piece);
    const T* z = logits(n, piece, buffer);
    const T* next = logits_.cls == 1 ? z + piece_size<A> : nullptr;
    const Partials<A> s = anl::cpu::measure(z, size, y, e, next);
    if (best)
      *best = first_equal(z, size, y, s.max);
    return s;
  }

  // A piece of a row whose softmax is known; e: where its p will be, or null.
  Piece<T> view(int64_t n, int64_t piece, const Label& label, A m, A log_s, T* buffer,
                const A* e) const {
    const int size = cut.size(piece), y = cut.place(label.y, piece);
    return {logits(n, piece, buffer), e, size, y, m, log_s, A(1)};
  }

  const Cut<A> cut;

private:
  const Rows logits_;
};

} // namespace anl::cpu
